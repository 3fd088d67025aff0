"""Stochastic depth that skips work (DINOv2, arXiv 2304.07193, section 4 "Efficient stochastic depth").

Not a Bernoulli mask over finished residuals: for each group of crops a residual is computed on ``k`` of the ``b``
samples, chosen anew for every residual, and added back to these samples times ``b / k``, which keeps its expectation.
Which samples are kept is drawn before the blocks run, so that a block that is run again by activation checkpointing
keeps the same ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from components.learning.packing import Group, Layout, group_rows


class Kept(NamedTuple):
    """The samples one residual is computed on.

    ``rows``: int64 ``[m]``, rows of the packed matrix, group after group; ``layout``: of these ``m`` rows;
    ``scales``: one factor ``b / k`` a group.
    """

    rows: Tensor
    layout: Layout
    scales: tuple[float, ...]


def kept_samples(samples: int, rate: float) -> int:
    """How many of ``samples`` a residual is computed on: at least one."""
    return max(int(samples * (1 - rate)), 1)


def draw_kept(
    layout: Layout, rate: float, residuals: int, generator: torch.Generator, device: torch.device
) -> list[Kept]:
    """Choose the kept samples of ``residuals`` residuals, all fresh, with a CPU ``generator``."""
    counts = [kept_samples(group.samples, rate) for group in layout]
    parts, start = [], 0
    for group, count in zip(layout, counts, strict=True):
        # the first of a random order, for all residuals at once; then in memory's order, which has no other effect
        order = torch.rand(residuals, group.samples, generator=generator, dtype=torch.float64).argsort(dim=1)
        chosen = order[:, :count].sort(dim=1).values
        index = start + chosen[:, :, None] * group.tokens + torch.arange(group.tokens)
        parts.append(index.view(residuals, -1))
        start += group.samples * group.tokens
    table = torch.cat(parts, dim=1)
    if device.type == "cuda":
        table = table.pin_memory()
    table = table.to(device, non_blocking=True)  # one copy for the whole forward pass
    kept_layout = tuple(Group(count, group.tokens) for group, count in zip(layout, counts, strict=True))
    scales = tuple(group.samples / count for group, count in zip(layout, counts, strict=True))
    return [Kept(index, kept_layout, scales) for index in table.unbind(0)]


def add_kept(x: Tensor, residual: Tensor, kept: Kept) -> Tensor:
    """``x`` ``[rows, dim]`` with ``residual`` ``[m, dim]`` added to its kept rows, scaled group by group."""
    if len(set(kept.scales)) == 1:
        return x.index_add(0, kept.rows, residual, alpha=kept.scales[0])
    sizes = group_rows(kept.layout)
    pairs = zip(kept.rows.split(sizes), residual.split(sizes), kept.scales, strict=True)
    out: Tensor | None = None
    for index, part, scale in pairs:
        # the first addition makes the copy, the others write into it
        out = x.index_add(0, index, part, alpha=scale) if out is None else out.index_add_(0, index, part, alpha=scale)
    assert out is not None
    return out


def share_of(rows: Tensor, kept: Kept, x: Tensor) -> tuple[Tensor, Tensor]:
    """What of a residual reaches some rows, and where they are among its own.

    Args:
        rows: int64 ``[n]``, of the packed matrix ``x``.
        kept: the samples the residual is computed on.
        x: ``[rows, dim]``; its length, dtype and device count.

    Returns:
        ``[n, 1]`` factors, ``b / k`` of the row's group or 0 where its sample is dropped, and int64 ``[n]``, the rows'
        places in ``kept.rows`` (0 for a dropped one).
    """
    scales = torch.cat(
        [x.new_full((size,), scale) for size, scale in zip(group_rows(kept.layout), kept.scales, strict=True)]
    )
    share = x.new_zeros(len(x)).index_copy_(0, kept.rows, scales)
    place = kept.rows.new_zeros(len(x))
    place[kept.rows] = torch.arange(len(kept.rows), device=x.device)
    return share.index_select(0, rows).unsqueeze(1), place.index_select(0, rows)
