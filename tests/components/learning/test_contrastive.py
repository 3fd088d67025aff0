"""The contrastive loss against a plain formula, its gradient, its head, and what it asks of the parameters."""

from __future__ import annotations

import math

import pytest
import torch

from components.errors import VitrailError
from components.learning.heads import BatchStandardised, HeadConfig, ProjectionHead
from components.learning.losses.contrastive import chance_level, contrastive_loss
from components.learning.objective import HeadsParams, ObjectiveParams, Output, contrastive_losses
from components.params import load_params
from components.training.params import TrainingParams

PRESET = "params/pretrain/vitt_cifar_contrastive.yaml"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(views: torch.Tensor, temperature: float) -> float:
    """Pair by pair, with Python's numbers."""
    count, images, _ = views.shape
    places = [(v, b) for v in range(count) for b in range(images)]
    unit = {place: [float(x) for x in views[place] / views[place].norm()] for place in places}

    def similarity(a: tuple[int, int], b: tuple[int, int]) -> float:
        return math.exp(sum(x * y for x, y in zip(unit[a], unit[b], strict=True)) / temperature)

    terms = [
        -math.log(similarity(one, other) / sum(similarity(one, third) for third in places if third != one))
        for one in places
        for other in places
        if other != one and other[1] == one[1]
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("count", "images"), [(2, 1), (2, 5), (4, 3)])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_it_is_the_formula_pair_by_pair(count: int, images: int, temperature: float) -> None:
    views = random(count, images, 6)
    assert float(contrastive_loss(views, temperature)) == pytest.approx(by_hand(views, temperature), rel=1e-10)


def test_gradients_are_those_of_differences() -> None:
    views = random(3, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, 0.3), views)


def test_vectors_that_are_all_equal_are_at_the_chance_level() -> None:
    views = torch.ones(2, 4, 3)
    assert float(contrastive_loss(views, 0.2)) == pytest.approx(chance_level(8), rel=1e-6)
    assert float(contrastive_loss(random(2, 4, 3)[:1].expand(2, 4, 3), 0.05)) < chance_level(8) / 2


def test_half_precision_is_summed_in_fp32() -> None:
    views = random(2, 6, 8).half()
    assert float(contrastive_loss(views, 0.1)) == pytest.approx(by_hand(views.double(), 0.1), rel=1e-4)


def test_global_and_local_views_and_koleo_are_all_of_the_loss() -> None:
    student = Output(random(4, 5), random(4, 6, seed=1), random(6, 6, seed=2), None)
    assert student.dino_local is not None
    views = torch.cat([student.dino_global, student.dino_local]).reshape(5, 2, 6)
    found = contrastive_losses(student, ObjectiveParams(kind="contrastive", contrastive_temperature=0.4))
    assert set(found.terms) == {"contrastive", "koleo"}
    assert float(found.terms["contrastive"]) == pytest.approx(by_hand(views, 0.4), rel=1e-10)
    assert float(found.total) == pytest.approx(float(sum(found.terms.values())), rel=1e-6)


def test_a_head_without_prototypes_gives_unit_vectors_and_standardises_over_the_batch() -> None:
    head = ProjectionHead(12, HeadConfig(prototypes=0, hidden=16, bottleneck=8, layers=2, batch_norm=True))
    assert [name for name, _ in head.named_parameters()] == ["mlp.0.weight", "mlp.0.bias", "mlp.3.weight", "mlp.3.bias"]
    torch.testing.assert_close(head(torch.randn(5, 12) + 9).norm(dim=1), torch.ones(5))
    x = random(7, 16) * 3 + 5
    torch.testing.assert_close(BatchStandardised()(x), torch.nn.BatchNorm1d(16, affine=False).double()(x))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("objective.kind=dino", r"heads\.dino\.prototypes 0: objective\.kind: dino needs prototypes"),
        ("heads.dino.prototypes=64", r"heads\.dino\.prototypes 64: .* set 0"),
        ("heads.dino.prototypes=1", "at least 2, or 0 for none"),
        ("heads.ibot={prototypes: 8}", r"heads\.ibot: .* set null"),
        ("objective.kind=contrastiv", "contrastive"),
        ("gram={start: 0.5, teacher_at: 0.4}", r"gram: of objective\.kind: dino"),
        ("vit.stem=patch", r"stem_extra 1: of stem: convolutional"),
        ("objective.contrastive_temperatur=1", "did you mean 'contrastive_temperature'"),
    ],
)
def test_what_does_not_fit_is_named(change: str, said: str) -> None:
    with pytest.raises(VitrailError, match=said):
        load_params(PRESET, TrainingParams, [change])


def test_the_dino_objective_has_no_batch_norm() -> None:
    heads = HeadsParams(dino=HeadConfig(prototypes=8, batch_norm=True))
    with pytest.raises(ValueError, match=r"heads\.dino\.batch_norm"):
        ObjectiveParams().check(heads)
