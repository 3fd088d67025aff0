"""Stochastic depth that skips work, and the block's parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components.learning.blocks import Block, LayerScale, Mlp, SwiGLU, Unscaled, swiglu_hidden
from components.learning.packing import Group, group_rows, pack, unpack
from components.learning.stochastic_depth import add_kept, draw_kept, kept_samples
from components.learning.vit import VisionTransformer, ViTConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(("dim", "hidden"), [(1024, 2736), (1536, 4096), (384, 1024), (768, 2048)])
def test_swiglu_hidden_sizes_are_the_released(dim: int, hidden: int) -> None:
    assert swiglu_hidden(dim) == hidden
    assert SwiGLU(8, swiglu_hidden(8)).w3.weight.shape == (8, 24)


def test_feed_forward_networks_by_hand() -> None:
    x = torch.randn(5, 8, dtype=torch.float64)
    mlp, gated = Mlp(8, 12).double(), SwiGLU(8, 12).double()
    inner = x @ mlp.fc1.weight.T + mlp.fc1.bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    torch.testing.assert_close(mlp(x), gelu @ mlp.fc2.weight.T + mlp.fc2.bias)
    both = x @ gated.w12.weight.T + gated.w12.bias
    a, b = both[:, :12], both[:, 12:]
    torch.testing.assert_close(gated(x), (a * torch.sigmoid(a) * b) @ gated.w3.weight.T + gated.w3.bias)


def test_layerscale_adds_as_it_scales() -> None:
    scale = LayerScale(4, 0.5)
    x, residual = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(scale(residual, x), x + 0.5 * residual)
    torch.testing.assert_close(scale(residual), 0.5 * residual)
    assert torch.equal(Unscaled()(residual, x), x + residual)
    assert Unscaled()(residual) is residual


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4))
def test_packing_comes_back(shapes: list[tuple[int, int]]) -> None:
    parts = [torch.randn(b, t, 3) for b, t in shapes]
    layout = tuple(Group(b, t) for b, t in shapes)
    packed = pack(parts)
    assert packed.shape == (sum(group_rows(layout)), 3)
    assert all(torch.equal(a, b) for a, b in zip(unpack(packed, layout), parts, strict=True))


@given(st.integers(1, 64), st.floats(0, 0.99))
def test_kept_samples_follow_the_rule(samples: int, rate: float) -> None:
    assert kept_samples(samples, rate) == max(int(samples * (1 - rate)), 1) <= samples


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=3),
    st.sampled_from([0.05, 0.1, 0.4, 0.7, 0.95]),
)
def test_drawn_rows_are_whole_samples_of_each_group(shapes: list[tuple[int, int]], rate: float) -> None:
    layout = tuple(Group(b, t) for b, t in shapes)
    owner = torch.cat([torch.arange(b).repeat_interleave(t) + 100 * i for i, (b, t) in enumerate(shapes)])
    for kept in draw_kept(layout, rate, 4, torch.Generator().manual_seed(0), CPU):
        assert kept.rows.unique().numel() == kept.rows.numel() == sum(group_rows(kept.layout))
        for i, (group, part) in enumerate(zip(layout, kept.rows.split(group_rows(kept.layout)), strict=True)):
            owners, counts = owner[part].unique(return_counts=True)
            assert len(owners) == kept_samples(group.samples, rate)
            assert (owners // 100 == i).all()
            assert (counts == group.tokens).all()
            assert kept.scales[i] == group.samples / len(owners)


def test_residuals_and_groups_are_drawn_independently() -> None:
    kept = draw_kept((Group(8, 1), Group(8, 1)), 0.5, 200, torch.Generator().manual_seed(0), CPU)
    chosen = torch.stack([torch.zeros(16).index_fill(0, k.rows, 1.0) for k in kept])
    assert (chosen.sum(1) == 8).all()
    frequency = chosen.mean(0)
    assert ((frequency - 0.5).abs() < 0.15).all()  # sd 0.035
    same = (chosen[:, :8] == chosen[:, 8:]).all(1).float().mean()
    assert same < 0.1  # groups draw apart: 1 in 70 by chance
    assert (chosen[::2] != chosen[1::2]).any(1).float().mean() > 0.9  # and attention apart from the network


@pytest.mark.gpu
def test_rows_drawn_for_a_gpu_are_the_cpus() -> None:
    layout = (Group(5, 3), Group(8, 2))
    here, there = (
        draw_kept(layout, 0.4, 4, torch.Generator().manual_seed(1), torch.device(device)) for device in ("cpu", "cuda")
    )
    x, residuals = torch.randn(31, 4), [torch.randn(len(kept.rows), 4) for kept in here]
    for one, other, residual in zip(here, there, residuals, strict=True):
        assert other.rows.device.type == "cuda"
        assert torch.equal(one.rows, other.rows.cpu())
        assert (one.layout, one.scales) == (other.layout, other.scales)
        added = add_kept(x.to("cuda"), residual.to("cuda"), other)
        torch.testing.assert_close(added.cpu(), add_kept(x, residual, one))


def shrunk_block() -> Block:
    block = Block(8, 2, swiglu=False, mlp_ratio=2.0, qkv_bias=True, layerscale_init=0.7)
    return block.double()


def every_choice(samples: int, count: int) -> list[Tensor]:
    from itertools import combinations

    return [torch.tensor(c) for c in combinations(range(samples), count)]


def test_exact_in_expectation() -> None:
    """The mean over every choice of samples is the block without stochastic depth (one residual at a time)."""
    from components.learning.stochastic_depth import Kept

    block, layout = shrunk_block(), (Group(4, 3), Group(3, 2))
    x = torch.randn(18, 8, dtype=torch.float64)
    residual = block.ls1(block.attn(block.norm1(x), layout))
    outs = []
    for first in every_choice(4, 2):
        for second in every_choice(3, 1):
            rows = torch.cat(
                [
                    (first[:, None] * 3 + torch.arange(3)).flatten(),
                    12 + (second[:, None] * 2 + torch.arange(2)).flatten(),
                ]
            )
            kept = Kept(rows, (Group(2, 3), Group(1, 2)), (2.0, 3.0))
            part = block.ls1(block.attn(block.norm1(x[rows]), kept.layout))
            outs.append(add_kept(x, part, kept))
    torch.testing.assert_close(torch.stack(outs).mean(0), x + residual)


def test_block_with_kept_samples_by_hand() -> None:
    block, layout = shrunk_block(), (Group(4, 3), Group(6, 2))
    x = torch.randn(24, 8, dtype=torch.float64, requires_grad=True)
    attn, ffn = draw_kept(layout, 0.4, 2, torch.Generator().manual_seed(2), CPU)
    found = block(x, layout, attn, ffn)
    (gradient,) = torch.autograd.grad(found.sin().sum(), x)

    def by_hand(x: Tensor) -> Tensor:
        groups = unpack(x, layout)
        for branch, kept in ((lambda t, lay: block.ls1(block.attn(block.norm1(t), lay)), attn), (_ffn(block), ffn)):
            starts, done = [0, 12], []
            for group, rows, start, scale in zip(
                groups, kept.rows.split(group_rows(kept.layout)), starts, kept.scales, strict=True
            ):
                tokens = group.shape[1]
                chosen = ((rows[::tokens] - start) // tokens).tolist()
                samples: list[Any] = list(group)
                for number in chosen:
                    samples[number] = samples[number] + scale * branch(samples[number], (Group(1, tokens),))
                done.append(torch.stack(samples))
            groups = done
        return pack(groups)

    expected = by_hand(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sin().sum(), x)[0])


def _ffn(block: Block) -> Any:
    return lambda t, _layout: block.ls2(block.mlp(block.norm2(t)))


def vit(drop_path: float) -> VisionTransformer:
    config = ViTConfig(
        image_size=16, patch_size=8, embed_dim=16, depth=2, heads=2, drop_path=drop_path, layerscale_init=0.5
    )
    return VisionTransformer(config)


def test_identity_in_eval_and_at_rate_zero() -> None:
    images = [torch.randn(4, 3, 16, 16), torch.randn(6, 3, 8, 8)]
    dropping, plain = vit(0.9), vit(0.0)
    for one, other in zip(dropping.eval()(images), plain.train()(images), strict=True):
        torch.testing.assert_close(one.cls, other.cls)
    assert not torch.allclose(dropping.train()(images)[0].cls, plain(images)[0].cls, atol=1e-3)


def test_the_choice_resumes_from_a_generators_state() -> None:
    images: Sequence[Tensor] = [torch.randn(4, 3, 16, 16)]
    model = vit(0.5).train()
    model.seed_drop_path(3)
    model(images)
    state = model.generator.get_state()
    after = [model(images)[0].cls for _ in range(2)]
    model.generator.set_state(state)
    assert all(torch.equal(model(images)[0].cls, cls) for cls in after)
    assert not torch.equal(after[0], after[1])
    model.seed_drop_path(4)
    assert not torch.equal(model(images)[0].cls, after[0])


@settings(deadline=None, max_examples=20)
@given(st.floats(0.01, 0.99), st.integers(1, 5))
def test_any_rate_and_any_number_of_samples_run(rate: float, samples: int) -> None:
    features = vit(rate).train()([torch.randn(samples, 3, 16, 16), torch.randn(1, 3, 8, 8)])
    assert all(torch.isfinite(f.cls).all() for f in features)


def test_a_block_is_one_graph_for_the_compiler() -> None:
    block, layout = shrunk_block(), (Group(4, 3), Group(6, 2))
    x = torch.randn(24, 8, dtype=torch.float64)
    kept = draw_kept(layout, 0.4, 2, torch.Generator().manual_seed(2), CPU)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, layout, *kept), block(x, layout, *kept))
    torch.testing.assert_close(compiled(x, layout), block(x, layout))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_follow_32(dtype: torch.dtype) -> None:
    model = vit(0.0)
    g = torch.Generator().manual_seed(0)
    images = [torch.randn(4, 3, 16, 16, generator=g), torch.randn(6, 3, 8, 8, generator=g)]  # the model casts them
    expected = model(images)
    found = model.to(dtype)(images)
    for a, b in zip(found, expected, strict=True):
        assert a.cls.dtype == a.patches.dtype == dtype
        torch.testing.assert_close(a.cls.float(), b.cls, atol=0.06, rtol=0.02)


def test_skipped_samples_cost_no_work() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    images = torch.randn(10, 3, 16, 16)
    flops = []
    for rate in (0.0, 0.4):
        model = vit(rate).train()
        with FlopCounterMode(display=False) as counter:
            model(images)
        with FlopCounterMode(display=False) as embedding:
            model.embeddings([images], [None])
        flops.append(counter.get_total_flops() - embedding.get_total_flops())
    assert flops[1] / flops[0] == pytest.approx(0.6, abs=0.001)
