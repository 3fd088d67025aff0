"""Sinkhorn-Knopp: invariants, the textbook form, extremes; and that losses over ranks equal one process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components.learning.heads import BatchStandardised
from components.learning.losses.centering import update_center
from components.learning.losses.contrastive import contrastive_loss
from components.learning.losses.koleo import koleo_loss
from components.learning.losses.sinkhorn import sinkhorn_knopp


def logits(rows: int, k: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def textbook(values: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """The published algorithm on ``exp(logits / temperature)``, transposed and with all its factors."""
    q = torch.exp(values / temperature).T
    k, b = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / k
        q = q / q.sum(0, keepdim=True) / b
    return (q * b).T


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.integers(2, 8), st.floats(0.05, 1.0), st.integers(1, 5), st.integers(0, 1000))
def test_is_the_textbook_form(rows: int, k: int, temperature: float, iterations: int, seed: int) -> None:
    values = logits(rows, k, seed)
    torch.testing.assert_close(
        sinkhorn_knopp(values, temperature, iterations),
        textbook(values, temperature, iterations),
        rtol=1e-8,
        atol=1e-12,
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(2, 12), st.integers(0, 1000), st.floats(-50, 50))
def test_rows_sum_to_one_and_prototypes_share_evenly(rows: int, k: int, seed: int, shift: float) -> None:
    values = logits(rows, k, seed)
    three = sinkhorn_knopp(values, 0.5)
    torch.testing.assert_close(three.sum(1), torch.ones(rows, dtype=torch.float64))
    settled = sinkhorn_knopp(values, 0.5, iterations=300)
    torch.testing.assert_close(settled.sum(0), torch.full((k,), rows / k, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    # what is added to a row or to a prototype does not matter
    torch.testing.assert_close(sinkhorn_knopp(values + shift, 0.5), three)
    towards = values + logits(1, k, seed + 1, 3.0)
    torch.testing.assert_close(sinkhorn_knopp(towards, 0.5, 300), settled, rtol=1e-5, atol=1e-7)


def test_closed_forms() -> None:
    flat = sinkhorn_knopp(torch.zeros(5, 4), 0.04)
    torch.testing.assert_close(flat, torch.full((5, 4), 0.25))
    collapsed = torch.zeros(6, 3)
    collapsed[:, 0] = 1.0  # every row prefers one prototype alike: spread evenly again
    torch.testing.assert_close(sinkhorn_knopp(collapsed, 0.04), torch.full((6, 3), 1 / 3), atol=1e-6, rtol=0)
    apart = sinkhorn_knopp(torch.eye(4) * 10, 0.04)
    torch.testing.assert_close(apart, torch.eye(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_huge_logits_do_not_overflow(dtype: torch.dtype) -> None:
    """``exp(logit / 0.04)`` is infinite from logits of 3.6 on; here they are 30,000."""
    values = (logits(6, 5, 0) * 1e4).to(dtype)
    found = sinkhorn_knopp(values, 0.04)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(1), torch.ones(6))
    assert not torch.isfinite(textbook(values.float(), 0.04)).all()


def test_no_gradient_and_no_change_of_the_input() -> None:
    values = torch.randn(4, 3, requires_grad=True)
    before = values.detach().clone()
    assert not sinkhorn_knopp(values, 0.1).requires_grad
    assert torch.equal(values.detach(), before)
    assert sinkhorn_knopp(torch.zeros(0, 3), 0.1).shape == (0, 3)


COUNTS = [(3, 5), (8, 0)]  # hidden patches differ from rank to rank; a rank may have none


def contrastive(views: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Of ``[V, B, 5]``, with features standardised over the batch, as its head does."""
    standardise = BatchStandardised()
    standardise.group = group
    return contrastive_loss(standardise(views.flatten(0, 1)).view_as(views), 0.3, group)


def on_rank(rank: int, rendezvous: str, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        group, found = dist.group.WORLD, {}
        for number, counts in enumerate(COUNTS):
            start = sum(counts[:rank])
            part = logits(8, 6, 3)[start : start + counts[rank]]
            found[f"sinkhorn{number}"] = sinkhorn_knopp(part, 0.1, group=group)
            found[f"center{number}"] = update_center(torch.ones(6, dtype=torch.float64), part, 0.9, group)
        features = logits(8, 5, 4).view(2, 4, 5)[:, rank * 2 : rank * 2 + 2].clone().requires_grad_()
        loss = koleo_loss(features, group)
        loss.backward()
        assert features.grad is not None
        found.update(koleo=loss.detach(), gradient=features.grad)
        views = logits(12, 5, 5).view(3, 4, 5)[:, rank * 2 : rank * 2 + 2].clone().requires_grad_()
        loss = contrastive(views, group)
        loss.backward()
        assert views.grad is not None
        found.update(contrastive=loss.detach(), contrastive_gradient=views.grad)
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    mp.spawn(on_rank, args=(str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    values = logits(8, 6, 3)
    for number in range(len(COUNTS)):
        joined = torch.cat([found[f"sinkhorn{number}"] for found in ranks])
        torch.testing.assert_close(joined, sinkhorn_knopp(values, 0.1))
        for found in ranks:
            expected = update_center(torch.ones(6, dtype=torch.float64), values)
            torch.testing.assert_close(found[f"center{number}"], expected)
    features = logits(8, 5, 4).view(2, 4, 5).clone().requires_grad_()
    whole = koleo_loss(features)
    whole.backward()
    # the mean of the ranks' losses is the whole batch's, and so are gradients once averaged over ranks
    torch.testing.assert_close((ranks[0]["koleo"] + ranks[1]["koleo"]) / 2, whole.detach())
    torch.testing.assert_close(torch.cat([found["gradient"] for found in ranks], 1) / 2, features.grad)
    views = logits(12, 5, 5).view(3, 4, 5).clone().requires_grad_()
    whole = contrastive(views, None)
    whole.backward()
    torch.testing.assert_close((ranks[0]["contrastive"] + ranks[1]["contrastive"]) / 2, whole.detach())
    torch.testing.assert_close(torch.cat([found["contrastive_gradient"] for found in ranks], 1) / 2, views.grad)
