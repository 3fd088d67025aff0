"""The projection head: its normalised last layer against torch's own, fp16, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.learning.heads import HeadConfig, NormalizedLinear, ProjectionHead


def test_normalized_linear_is_torchs_weight_norm() -> None:
    ours = NormalizedLinear(6, 9).double()
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(6, 9, bias=False).double(), dim=0)
    with torch.no_grad():
        ours.weight_v.copy_(torch.randn(9, 6))
        ours.weight_g.copy_(torch.rand(9, 1) + 0.5)
        theirs.parametrizations.weight.original0.copy_(ours.weight_g)
        theirs.parametrizations.weight.original1.copy_(ours.weight_v)
    x = torch.randn(4, 6, dtype=torch.float64)
    ours(x).sin().sum().backward()
    theirs(x).sin().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.weight_g.grad, theirs.parametrizations.weight.original0.grad)
    torch.testing.assert_close(ours.weight_v.grad, theirs.parametrizations.weight.original1.grad)


def test_logits_are_cosines_times_g() -> None:
    head = ProjectionHead(12, HeadConfig(prototypes=50, hidden=16, bottleneck=8))
    logits = head(torch.randn(2, 5, 12) * 30)
    assert logits.shape == (2, 5, 50)
    assert head.last_layer.weight_g.eq(1).all()
    assert logits.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        head.last_layer.weight_g.fill_(3.0)
    assert 1 < head(torch.randn(64, 12)).abs().max() <= 3 + 1e-5


def test_names_shapes_and_no_hooks() -> None:
    head = ProjectionHead(12, HeadConfig(prototypes=50, hidden=16, bottleneck=8))
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "mlp.0.weight": (16, 12),
        "mlp.0.bias": (16,),
        "mlp.2.weight": (16, 16),
        "mlp.2.bias": (16,),
        "mlp.4.weight": (8, 16),
        "mlp.4.bias": (8,),
        "last_layer.weight_v": (50, 8),
        "last_layer.weight_g": (50, 1),
    }
    assert all(p.requires_grad for p in head.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in head.modules())
    assert not any(nn.utils.parametrize.is_parametrized(m) for m in head.modules())
    single = ProjectionHead(12, HeadConfig(prototypes=50, hidden=16, bottleneck=8, layers=1))
    assert tuple(single.mlp[0].weight.shape) == (8, 12)


def test_start_values_come_from_the_generator() -> None:
    config = HeadConfig(prototypes=512, hidden=64, bottleneck=32)
    one, two = ProjectionHead(32, config), ProjectionHead(32, config)
    assert torch.equal(one.last_layer.weight_v, two.last_layer.weight_v)
    two.init_weights(torch.Generator().manual_seed(7))
    assert not torch.equal(one.last_layer.weight_v, two.last_layer.weight_v)
    assert one.last_layer.weight_g.eq(1).all()
    assert one.mlp[0].bias.eq(0).all()
    assert one.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("bottleneck", [64, 256])
def test_prototypes_start_as_torchs_linear_layers_do_whatever_the_others_start_with(bottleneck: int) -> None:
    """The released heads apply their truncated normal before the last layer is made."""
    config = HeadConfig(prototypes=1000, hidden=16, bottleneck=bottleneck, init_std=0.1)
    found = ProjectionHead(12, config).last_layer.weight_v.detach()
    theirs = nn.Linear(bottleneck, 1000, bias=False).weight.detach()
    bound = bottleneck**-0.5
    assert 0.99 * bound < found.abs().max() <= bound
    assert found.std().item() == pytest.approx(theirs.std().item(), rel=0.02)
    assert found.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert found.norm(dim=1).mean().item() == pytest.approx(3**-0.5, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_zero_bottleneck_stays_finite_in_16_bits(dtype: torch.dtype) -> None:
    """1e-12 is 0 in fp16: 0 / 0 would follow."""
    head = ProjectionHead(12, HeadConfig(prototypes=50, hidden=16, bottleneck=8)).to(dtype)
    out = head(torch.zeros(3, 12, dtype=dtype))
    assert out.dtype == dtype
    assert out.eq(0).all()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in head.mlp.parameters():  # to the size that signals have in a head of 2,048
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    head(torch.randn(3, 12, generator=generator).to(dtype)).float().square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())


def test_prototype_norms_do_not_overflow_in_fp16() -> None:
    layer = NormalizedLinear(8, 4).half()
    with torch.no_grad():
        layer.weight_v.fill_(300.0)  # the square sum is 720,000, above fp16's largest
    out = layer(torch.full((1, 8), 8**-0.5, dtype=torch.float16))
    torch.testing.assert_close(out.float(), torch.ones(1, 4), atol=2e-3, rtol=0)
