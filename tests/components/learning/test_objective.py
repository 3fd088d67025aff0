"""The objective by hand-written sums: weights, which rows meet which, what the centre is and when it moves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from components.learning.losses.ibot import masked_patches
from components.learning.objective import (
    Centering,
    HeadsParams,
    Network,
    ObjectiveParams,
    Output,
    Targets,
    build_network,
    health,
    losses,
)
from components.learning.vit import ViTConfig

B, LOCALS, D, K, K_IBOT = 3, 2, 6, 5, 7
CPU = torch.device("cpu")
MASKS = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def student(patches: int = 6) -> Output:
    return Output(
        random(2 * B, D, seed=0),
        random(2 * B, K, seed=1),
        random(LOCALS * B, K, seed=2),
        random(patches, K_IBOT, seed=3),
    )


def targets(patches: int = 6) -> Targets:
    return Targets(random(2 * B, K, seed=4).softmax(1), random(patches, K_IBOT, seed=5).softmax(1))


def cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> float:
    exponents = [math.exp(float(x) / temperature) for x in logits]
    return -sum(float(t) * math.log(e / sum(exponents)) for t, e in zip(target, exponents, strict=True))


def koleo(crop: Tensor) -> float:
    unit = [row / row.norm() for row in crop]
    nearest = [min(float((a - b).norm()) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    return -sum(math.log(distance) for distance in nearest) / len(unit)


def test_every_term_by_hand() -> None:
    params = ObjectiveParams(dino_weight=0.7, ibot_weight=1.3, koleo_weight=0.2, student_temperature=0.15)
    said, wanted = student(), targets()
    assert wanted.ibot is not None
    assert said.ibot is not None
    assert said.dino_local is not None
    found = losses(said, wanted, masked_patches(MASKS).weights, params)

    pairs = 2 + 2 * LOCALS
    crossed = sum(
        cross_entropy(wanted.dino[(1 - crop) * B + b], said.dino_global[crop * B + b], 0.15) / B
        for crop in range(2)
        for b in range(B)
    )
    within = sum(
        cross_entropy(wanted.dino[crop * B + b], said.dino_local[local * B + b], 0.15) / B
        for crop in range(2)
        for local in range(LOCALS)
        for b in range(B)
    )
    owner = [0, 0, 2, 4, 4, 4]  # the crop that each of the six hidden patches is of
    hidden = sum(
        cross_entropy(wanted.ibot[m], said.ibot[m], 0.15) / owner.count(owner[m]) / (2 * B) for m in range(len(owner))
    )
    assert found.terms.keys() == {"dino_global", "dino_local", "ibot", "koleo"}
    expected = {
        "dino_global": 0.7 * crossed / pairs,
        "dino_local": 0.7 * within / pairs,
        "ibot": 1.3 * hidden,
        "koleo": 0.2 * (koleo(said.cls[:B]) + koleo(said.cls[B:])),  # both crops, each on its own
    }
    for name, value in expected.items():
        assert float(found.terms[name]) == pytest.approx(value, rel=1e-6), name
    assert float(found.total) == pytest.approx(sum(expected.values()), rel=1e-6)


def test_the_recipes_weights_are_one_one_and_a_tenth() -> None:
    plain = losses(student(), targets(), masked_patches(MASKS).weights, ObjectiveParams())
    unit = losses(student(), targets(), masked_patches(MASKS).weights, ObjectiveParams(koleo_weight=1.0))
    assert float(plain.terms["koleo"]) == pytest.approx(0.1 * float(unit.terms["koleo"]))
    for name in ("dino_global", "dino_local", "ibot"):
        assert torch.equal(plain.terms[name], unit.terms[name])


def test_a_term_without_what_it_is_of_is_left_out() -> None:
    weights = masked_patches(MASKS).weights
    no_locals = losses(student()._replace(dino_local=None), targets(), weights, ObjectiveParams())
    assert no_locals.terms.keys() == {"dino_global", "ibot", "koleo"}
    no_patches = losses(student()._replace(ibot=None), targets(), weights, ObjectiveParams(koleo_weight=0))
    assert no_patches.terms.keys() == {"dino_global", "dino_local"}


def textbook_sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """The matrix scaled in turn by columns and rows, as the papers write it; not in logarithms."""
    q = torch.exp(logits / temperature)
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return q * q.shape[0]


def heads(ibot: bool = True) -> HeadsParams:
    content: dict[str, Any] = {"dino": {"prototypes": K, "hidden": 8, "bottleneck": 4}}
    if ibot:
        content["ibot"] = {"prototypes": K_IBOT, "hidden": 8, "bottleneck": 4}
    return HeadsParams.model_validate(content)


def test_sinkhorn_shares_prototypes_over_both_crops_jointly_and_over_patches_apart() -> None:
    said = student()
    centering = Centering(ObjectiveParams(sinkhorn_iterations=2), heads(), CPU)
    found = centering.targets(said, 0.5)
    joint = textbook_sinkhorn(said.dino_global, 0.5, 2)
    torch.testing.assert_close(found.dino, joint)
    apart = torch.cat([textbook_sinkhorn(crop, 0.5, 2) for crop in said.dino_global.split(B)])
    assert (joint - apart).abs().max() > 1e-3  # the two can be told
    assert said.ibot is not None
    assert found.ibot is not None
    torch.testing.assert_close(found.ibot, textbook_sinkhorn(said.ibot, 0.5, 2))
    assert centering.centers == {}
    assert centering.targets(said._replace(ibot=None), 0.5).ibot is None


def test_the_centre_of_a_batch_counts_from_the_next_one_on() -> None:
    centering = Centering(ObjectiveParams(centering="softmax", center_momentum=0.8), heads(), CPU)
    centers = {"dino": torch.zeros(K), "ibot": torch.zeros(K_IBOT)}
    for batch in range(3):
        said = Output(
            random(2 * B, D, seed=0),
            random(2 * B, K, seed=10 + batch).float() * 3 + 1,
            None,
            random(4 + batch, K_IBOT, seed=20 + batch).float() * 2 - 1,
        )
        found = centering.targets(said, 0.5)
        assert said.ibot is not None
        assert found.ibot is not None
        torch.testing.assert_close(found.dino, torch.softmax((said.dino_global - centers["dino"]) / 0.5, 1))
        torch.testing.assert_close(found.ibot, torch.softmax((said.ibot - centers["ibot"]) / 0.5, 1))
        for name, logits in (("dino", said.dino_global), ("ibot", said.ibot)):
            centers[name] = 0.8 * centers[name] + 0.2 * logits.mean(0)
            torch.testing.assert_close(centering.centers[name], centers[name])


def network(ibot: bool) -> Network:
    shape = {"image_size": 16, "patch_size": 8, "embed_dim": D, "depth": 1, "heads": 2, "layerscale_init": 0.5}
    found = build_network(ViTConfig.model_validate(shape), heads(ibot), 3).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return found


@pytest.mark.parametrize("ibot", [False, True])
def test_what_the_network_says_is_its_parts_one_by_one(ibot: bool) -> None:
    """Whichever way the rows travel through a shared head, each comes back where it belongs."""
    net = network(ibot)
    large, small = random(2 * B, 3, 16, 16, seed=6), random(LOCALS * B, 3, 8, 8, seed=7)
    patches = masked_patches(MASKS).positions
    said = net(large, small, MASKS, patches, dense=True)
    features, local = net.backbone(large, MASKS), net.backbone(small)
    torch.testing.assert_close(said.cls, features.cls)
    torch.testing.assert_close(said.patches, features.patches)
    torch.testing.assert_close(said.dino_global, net.dino_head(features.cls))
    torch.testing.assert_close(said.dino_local, net.dino_head(local.cls))
    head = net.ibot_head if ibot else net.dino_head
    assert head is not None
    places = [(0, 1), (0, 2), (2, 0), (4, 0), (4, 1), (4, 2)]  # crop and patch, as MASKS has them
    chosen = torch.stack([features.patches[crop, patch] for crop, patch in places])
    torch.testing.assert_close(said.ibot, head(chosen))
    assert said.ibot.shape[1] == (K_IBOT if ibot else K)

    whole = net(large)  # as a teacher without patches sees it
    assert (whole.dino_local, whole.ibot, whole.patches) == (None, None, None)
    torch.testing.assert_close(whole.cls, net.backbone(large).cls)
    assert not torch.allclose(whole.cls[0], said.cls[0], atol=1e-3)  # of the first crop two patches were hidden
    torch.testing.assert_close(whole.cls[1], said.cls[1])  # of the second none


def test_start_values_come_from_the_seed_and_heads_do_not_share_theirs() -> None:
    vit = ViTConfig(image_size=16, patch_size=8, embed_dim=D, depth=1, heads=2)
    twice = HeadsParams(dino=heads().dino, ibot=heads().dino)
    one, same, other = (build_network(vit, twice, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    for name in ("backbone.blocks.0.attn.qkv.weight", "dino_head.mlp.0.weight", "ibot_head.last_layer.weight_v"):
        assert not torch.equal(one[name], other[name])
    assert not torch.equal(one["dino_head.mlp.0.weight"], one["ibot_head.mlp.0.weight"])
    assert build_network(vit, heads(ibot=False), 1).ibot_head is None


def entropy(row: np.ndarray) -> float:
    return -sum(p * math.log(p) for p in row if p > 0)


def test_health_by_hand() -> None:
    said, wanted = student(), targets()
    found = {name: float(value) for name, value in health(said, wanted).items()}
    rows, cls = wanted.dino.numpy(), said.cls.numpy()
    assert found["target_entropy"] == pytest.approx(sum(map(entropy, rows)) / (2 * B) / math.log(K), rel=1e-5)
    assert found["prototype_usage"] == pytest.approx(entropy(rows.mean(0)) / math.log(K), rel=1e-5)
    unit = cls / np.linalg.norm(cls, axis=1, keepdims=True)
    assert found["feature_std"] == pytest.approx(unit.std(0, ddof=1).mean() * D**0.5, rel=1e-5)
    singular = np.linalg.svd(cls - cls.mean(0), compute_uv=False)
    assert found["feature_rank"] == pytest.approx(math.exp(entropy(singular / singular.sum())), rel=1e-4)


def test_health_of_the_extremes() -> None:
    said = student()
    even = health(said, Targets(torch.full((2 * B, K), 1 / K), None))
    assert float(even["target_entropy"]) == pytest.approx(1)
    assert float(even["prototype_usage"]) == pytest.approx(1)
    single = health(said, Targets(torch.eye(K)[[2] * 2 * B], None))
    assert float(single["target_entropy"]) == float(single["prototype_usage"]) == 0
    spread = health(said, Targets(torch.eye(K)[torch.arange(2 * B) % K], None))
    assert float(spread["target_entropy"]) == 0
    assert float(spread["prototype_usage"]) > 0.9
