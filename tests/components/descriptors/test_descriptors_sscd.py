"""The network, its loss, its optimizer and what follows it, against formulas, limits and independent code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.descriptors.contrastive_loss import copy_loss, entropy, info_nce, matches
from components.descriptors.lars import Lars, groups
from components.descriptors.network import CopyNet
from components.descriptors.resnet import ResNet, gem, network_of
from components.descriptors.train import backward, learning_rate
from components.descriptors.train_params import DescriptorTrainingParams, NetworkParams, OptimizerParams
from components.descriptors.whiten import fit_whitening
from components.errors import VitrailError
from perf.scorenorm import ScoreNormParams, extend_references, normalise_queries


def unit(seed: int, rows: int, dim: int) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(rows, dim))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0.03, 1.0))
def test_the_loss_is_the_formula_written_out_pair_by_pair(seed: int, images: int, temperature: float) -> None:
    generator = np.random.default_rng(seed)
    z = unit(seed, 2 * images, 5)
    sources = np.tile(np.arange(images), 2)[:, None].repeat(2, 1)
    mixed = generator.random(2 * images) < 0.3
    sources[mixed, 1] = generator.integers(0, images, mixed.sum())
    shows = [set(row) for row in sources.tolist()]
    contrast, spread = [], []
    for i in range(2 * images):
        others = [j for j in range(2 * images) if not shows[i] & shows[j]]
        copies = [j for j in range(2 * images) if j != i and shows[i] & shows[j]]
        against = sum(math.exp(z[i] @ z[j] / temperature) for j in others)
        each = [math.exp(z[i] @ z[j] / temperature) for j in copies]
        contrast.append(np.mean([-math.log(e / (e + against)) for e in each]))
        spread.append(-math.log(max(1e-3, min([np.linalg.norm(z[i] - z[j]) for j in others], default=6**0.5))))
    found = copy_loss(torch.from_numpy(z), torch.from_numpy(sources), temperature, 10.0).item()
    assert found == pytest.approx(np.mean(contrast) + 10 * np.mean(spread), rel=1e-6, abs=1e-6)


def test_two_orthogonal_pairs_have_the_closed_form() -> None:
    """Two images, two identical views each, at right angles: -log(e^20 / (e^20 + 2)), and a distance of sqrt 2."""
    z = torch.eye(2, dtype=torch.float64).repeat(2, 1)
    match = matches(torch.tensor([[0], [1], [0], [1]]))
    similarity = z @ z.T
    assert info_nce(similarity, match, 0.05).item() == pytest.approx(math.log1p(2 * math.exp(-20)), rel=1e-9)
    assert entropy(similarity, match).item() == pytest.approx(-math.log(2) / 2)


def test_the_loss_has_a_finite_gradient_where_rows_coincide() -> None:
    rows = torch.nn.functional.normalize(torch.ones(6, 4), dim=1).requires_grad_()
    copy_loss(rows, torch.arange(6)[:, None] % 3, 0.05, 30.0).backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_gem_is_the_mean_at_one_and_the_maximum_in_the_limit() -> None:
    x = torch.rand(3, 5, 4, 6, dtype=torch.float64) + 0.1
    torch.testing.assert_close(gem(x, 1.0), x.mean((2, 3)))
    torch.testing.assert_close(gem(x, 3.0), (x**3).mean((2, 3)) ** (1 / 3))
    torch.testing.assert_close(gem(x, 400.0), x.amax((2, 3)), rtol=0.02, atol=0)


def test_lars_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    vector = torch.nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))
    zero = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    module = torch.nn.Module()
    module.matrix, module.vector, module.zero = matrix, vector, zero
    optimizer = Lars(groups(module, 0.1), lr=0.5, momentum=0.9, weight_decay=0.1, trust=0.02)
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    speed = {name: torch.zeros_like(p) for name, p in expected.items()}
    for _ in range(3):
        for name, p in module.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            w, g = expected[name], p.grad
            if name == "vector":
                step = g
            elif name == "matrix":
                step = 0.02 * w.norm() / (g.norm() + 0.1 * w.norm()) * (g + 0.1 * w)
            else:  # of zero norm at the first step only
                rate = 0.02 * w.norm() / (g.norm() + 0.1 * w.norm()) if w.norm() > 0 else 1.0
                step = rate * (g + 0.1 * w)
            speed[name] = 0.9 * speed[name] + 0.5 * step
            expected[name] = w - speed[name]
        optimizer.step()
        for name, p in module.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name])


def test_whitening_without_a_floor_gives_identity_covariance_in_any_dimension_kept() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 12)) @ np.random.default_rng(1).normal(size=(12, 12)) + 3
    whitening = fit_whitening(rows, 7, 0.0)
    white = (rows - whitening.mean) @ whitening.projection
    np.testing.assert_allclose(np.cov(white, rowvar=False, bias=True), np.eye(7), atol=1e-4)


def test_score_normalisation_is_the_formula() -> None:
    q, r, background = unit(0, 4, 8), unit(1, 6, 8), unit(2, 30, 8)
    for beta, (first, last) in ((1.0, (1, 3)), (0.5, (2, 2))):
        how = ScoreNormParams(beta=beta, neighbours=(first, last))
        found = normalise_queries(q, background, how, block=3) @ extend_references(r).T
        nearest = -np.sort(-(q @ background.T), axis=1)[:, first - 1 : last]
        np.testing.assert_allclose(found, q @ r.T - beta * nearest.mean(1, keepdims=True), atol=1e-5)
    with pytest.raises(ValueError, match="background of 2 rows"):
        normalise_queries(q, background[:2], ScoreNormParams())


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    how = OptimizerParams(lr=2.0, warmup=0.1)
    rates = [learning_rate(step, 100, how) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001
    assert learning_rate(0, 1, OptimizerParams(lr=2.0, warmup=0.0)) == 2.0


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    params = NetworkParams(side=16, width=8, dim=8, stem="small")
    views = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8))
    sources = torch.arange(10)[:, None] % 5
    grads = []
    for micro in (None, 4):
        model = CopyNet(params)
        model.init_weights(torch.Generator().manual_seed(0))
        model.eval()  # batch norm by its running statistics: the one thing that sees parts
        loss = backward(model, views, sources, DescriptorTrainingParams(micro_batch=micro))
        grads.append([loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(grads[0]) > 20
    for whole, parts in zip(*grads, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_micro_batches_move_running_statistics_once() -> None:
    params = NetworkParams(side=16, width=8, dim=8)
    views = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    model = CopyNet(params)
    model.init_weights(torch.Generator())
    backward(model.train(), views, torch.arange(4)[:, None] % 2, DescriptorTrainingParams(micro_batch=2))
    assert model.backbone.bn1.num_batches_tracked.item() == 2


@pytest.mark.parametrize(
    ("arch", "parameters"),
    # torchvision's published counts, less its classifier (features x 1000 + 1000)
    [("resnet18", 11_689_512 - 513_000), ("resnet50", 25_557_032 - 2_049_000)],
)
def test_resnets_have_torchvisions_names_and_sizes(arch: str, parameters: int) -> None:
    params = NetworkParams(arch=arch, width=64, stem="imagenet", dim=512, side=224, normalise="imagenet")  # type: ignore[arg-type]
    with torch.device("meta"):
        model = ResNet(params)
    assert sum(p.numel() for name, p in model.named_parameters() if not name.startswith("fc.")) == parameters
    state = model.state_dict()
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer4.1.bn2.bias", "fc.bias"} <= set(state)
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.num_batches_tracked"} <= set(state)
    assert ("layer1.0.downsample.0.weight" in state) == (arch == "resnet50")
    assert network_of(state, 224, "here") == params


@pytest.mark.parametrize("arch", ["resnet10", "resnext101_32x4d", "resnext101_32x8d"])
def test_a_state_dict_tells_its_network(arch: str) -> None:
    params = NetworkParams(arch=arch, width=64, stem="imagenet", dim=1024, side=288, normalise="imagenet")  # type: ignore[arg-type]
    with torch.device("meta"):
        state = ResNet(params).state_dict()
    assert network_of(state, 288, "here") == params
    if arch == "resnext101_32x8d":  # torchvision's count of resnext101_32x8d, less its classifier
        assert sum(t.numel() for n, t in state.items() if n.endswith(("weight", "bias"))) - 2049 * 1024 == (
            88_791_336 - 2_049_000
        )
    del state["fc.weight"]
    with pytest.raises(VitrailError, match=r"here: no tensor 'fc.weight'.*torchvision.pt"):
        network_of(state, 288, "here")


def test_a_resnet_of_another_depth_is_named() -> None:
    with torch.device("meta"):
        state = ResNet(NetworkParams()).state_dict()
    state["layer4.1.conv1.weight"] = state["layer4.0.conv2.weight"]
    with pytest.raises(VitrailError, match=r"a ResNet of \(1, 1, 1, 2\) blocks"):
        network_of(state, 64, "here")


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_the_trunk_agrees_with_hugging_faces(arch: str) -> None:
    from transformers import ResNetConfig, ResNetModel

    params = NetworkParams(arch=arch, width=8, stem="imagenet", dim=8, gem=1.0)  # type: ignore[arg-type]
    ours = ResNet(params).eval()
    ours.init_weights(torch.Generator().manual_seed(0))
    depths, wide = ([2, 2, 2, 2], 1) if arch == "resnet18" else ([3, 4, 6, 3], 4)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8 * wide, 16 * wide, 32 * wide, 64 * wide],
        depths=depths,
        layer_type="basic" if wide == 1 else "bottleneck",
    )
    theirs = ResNetModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in ours.state_dict().items():
        if "bn" in name or "downsample.1" in name:  # norms that do something
            tensor.copy_(torch.rand(tensor.shape, generator=generator).add(0.5).to(tensor.dtype))
        state[_hugging_face(name)] = tensor
    del state["fc.weight"], state["fc.bias"]
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, 65, 48, generator=generator)
    with torch.inference_mode():
        pooled = theirs(x).pooler_output[:, :, 0, 0]
        torch.testing.assert_close(ours(x), ours.fc(pooled), rtol=1e-4, atol=1e-4)


def _hugging_face(name: str) -> str:
    parts = name.split(".")
    kinds = {"conv": "convolution", "bn": "normalization"}
    if parts[0][:-1] in kinds:
        return f"embedder.embedder.{kinds[parts[0][:-1]]}.{parts[1]}"
    if parts[0] == "fc":
        return name
    stem = f"encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}"
    if parts[2] == "downsample":
        return f"{stem}.shortcut.{('convolution', 'normalization')[int(parts[3])]}.{parts[4]}"
    return f"{stem}.layer.{int(parts[2][-1]) - 1}.{kinds[parts[2][:-1]]}.{parts[3]}"
