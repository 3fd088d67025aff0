"""The losses against their definitions, written out naively, and golden values of an untrained model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components.learning.losses.centering import centered_softmax, update_center
from components.learning.losses.dino import cross_entropy, cross_entropy_rows, dino_loss
from components.learning.losses.gram import gram_loss, resample_patches
from components.learning.losses.ibot import ibot_loss, masked_patches
from components.learning.losses.koleo import koleo_loss
from components.learning.losses.sinkhorn import sinkhorn_knopp


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probabilities(*shape: int, seed: int = 0) -> Tensor:
    return torch.softmax(torch.randn(*shape, generator=seeded(seed), dtype=torch.float64) * 3, dim=-1)


@pytest.mark.parametrize(
    ("prototypes", "local", "across", "ibot_shown"), [(131072, 10.47, 1.31, 2.95), (65536, 9.86, 1.23, 2.77)]
)
def test_losses_of_an_untrained_model(prototypes: int, local: float, across: float, ibot_shown: float) -> None:
    """What the original's logs begin with; a run that stays there has not learnt."""
    flat = torch.zeros(2, 1, prototypes)
    teacher = torch.full((2, 1, prototypes), 1 / prototypes)
    found = dino_loss(flat, torch.zeros(8, 1, prototypes), teacher)
    assert round(float(found.local_crops), 2) == local
    assert round(float(found.global_crops), 2) == across
    assert float(sum(found)) == pytest.approx(math.log(prototypes), rel=1e-5)
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[1, :3] = True  # half of the crops are masked
    hidden = masked_patches(masks)
    loss = ibot_loss(flat[:, 0].new_zeros(3, prototypes), teacher[0].expand(3, -1), hidden.weights, images=2)
    assert round(float(loss) / 2, 2) == ibot_shown  # its log shows half


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(2, 9), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_dino_is_every_pair_weighed_alike(images: int, locals_: int, k: int, temperature: float, seed: int) -> None:
    student = torch.randn(2 + locals_, images, k, generator=seeded(seed), dtype=torch.float64)
    teacher = probabilities(2, images, k, seed=seed + 1)
    local = student[2:] if locals_ else None
    found = dino_loss(student[:2], local, teacher, temperature)
    across, within, terms = 0.0, 0.0, 0
    for t in range(2):
        for s in range(2 + locals_):
            if s == t:
                continue
            terms += 1
            for b in range(images):
                log_p = torch.log(torch.softmax(student[s, b] / temperature, 0))
                value = -float((teacher[t, b] * log_p).sum()) / images
                across, within = (across + value, within) if s < 2 else (across, within + value)
    assert terms == 2 + 2 * locals_  # 18 with eight local crops
    assert float(found.global_crops) == pytest.approx(across / terms, rel=1e-9)
    assert float(found.local_crops) == pytest.approx(within / terms, rel=1e-9, abs=1e-12)
    flat = dino_loss(
        student[:2].flatten(0, 1), None if local is None else local.flatten(0, 1), teacher.flatten(0, 1), temperature
    )
    torch.testing.assert_close(flat.global_crops, found.global_crops)
    torch.testing.assert_close(flat.local_crops, found.local_crops)


def test_no_crop_is_compared_with_itself() -> None:
    """The teacher's halves are swapped: A meets B."""
    student = torch.zeros(2, 1, 3)
    student[0, 0, 0] = student[1, 0, 1] = 50.0
    same = torch.eye(3)[:2].view(2, 1, 3)
    assert float(dino_loss(student, None, same.flip(0)).global_crops) == pytest.approx(0, abs=1e-5)
    assert float(dino_loss(student, None, same).global_crops) > 100


def test_cross_entropy_is_torchs_and_its_gradient_too() -> None:
    logits = torch.randn(5, 7, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    target = probabilities(5, 7)
    ours, theirs = cross_entropy(logits, target, 0.1), F.cross_entropy(logits / 0.1, target)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits), strict=True):
        torch.testing.assert_close(a, b)


def test_cross_entropy_computes_in_fp32_and_stays_finite() -> None:
    logits = torch.full((2, 4), 60000.0, dtype=torch.float16)
    logits[:, 0] = -60000.0
    rows = cross_entropy_rows(logits, torch.full((2, 4), 0.25), 0.1)
    assert rows.dtype == torch.float32
    assert torch.isfinite(rows).all()
    assert float(rows[0]) == pytest.approx(0.25 * 1.2e6, rel=1e-3)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000))
def test_ibot_is_the_mean_in_each_image_over_all_images(images: int, patches: int, seed: int) -> None:
    masks = torch.rand(images, patches, generator=seeded(seed)) < 0.5
    hidden = masked_patches(masks)
    student = torch.randn(images, patches, 5, generator=seeded(seed), dtype=torch.float64)
    teacher = probabilities(images, patches, 5, seed=seed)
    expected = 0.0
    for i in range(images):
        values = [
            float(cross_entropy(student[i, j][None], teacher[i, j][None], 0.1)) for j in range(patches) if masks[i, j]
        ]
        expected += sum(values) / max(len(values), 1)
    flat = [tensor.flatten(0, 1)[hidden.positions] for tensor in (student, teacher)]
    assert float(ibot_loss(flat[0], flat[1], hidden.weights.double(), images)) == pytest.approx(
        expected / images, rel=1e-6
    )
    assert float(hidden.weights.sum()) == pytest.approx(int(masks.any(1).sum()), rel=1e-5)


def test_ibot_halves_when_half_of_the_crops_are_masked() -> None:
    masks = torch.zeros(4, 9, dtype=torch.bool)
    masks[0, :2] = masks[3, :7] = True
    hidden = masked_patches(masks)
    student, teacher = torch.zeros(9, 11), torch.full((9, 11), 1 / 11)
    assert float(ibot_loss(student, teacher, hidden.weights, 4)) == pytest.approx(0.5 * math.log(11), rel=1e-6)
    none = masked_patches(torch.zeros(4, 9, dtype=torch.bool))
    empty = torch.zeros(0, 11, requires_grad=True)
    loss = ibot_loss(empty, torch.zeros(0, 11), none.weights, 4)
    loss.backward()
    assert loss.item() == 0
    assert empty.grad is not None


def naive_koleo(rows: Tensor, eps: float) -> float:
    unit = [row / row.norm() for row in rows]
    total = 0.0
    for i, a in enumerate(unit):
        total -= math.log(min(float((a - b).norm()) for j, b in enumerate(unit) if j != i) + eps)
    return total / len(unit)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 7), st.integers(2, 5), st.integers(0, 1000))
def test_koleo_is_its_definition_crop_by_crop(images: int, dim: int, seed: int) -> None:
    features = torch.randn(2, images, dim, generator=seeded(seed), dtype=torch.float64)
    expected = naive_koleo(features[0], 1e-8) + naive_koleo(features[1], 1e-8)
    assert float(koleo_loss(features)) == pytest.approx(expected, rel=1e-9)
    scaled = features * torch.rand(2, images, 1, generator=seeded(seed)).add(0.1)
    assert float(koleo_loss(scaled)) == pytest.approx(expected, rel=1e-6)


def test_koleo_of_points_a_known_distance_apart() -> None:
    square = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    assert float(koleo_loss(square)) == pytest.approx(-math.log(2**0.5), rel=1e-6)


def test_koleo_of_equal_fp16_features_is_finite() -> None:
    """In fp16 eps is 0: the original reports inf here. The duplicate's gradient must not poison the weights either."""
    features = torch.ones(4, 8, dtype=torch.float16, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-math.log(1e-8), rel=1e-3)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_koleo_keeps_fp32_under_autocast() -> None:
    # so close to one another that 16 bits would not tell which is the nearest
    features = 1 + 0.02 * torch.randn(12, 8, generator=seeded(0))
    outside = koleo_loss(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = koleo_loss(features)
        assert (features @ features.T).dtype == torch.bfloat16  # it is on, for what is not guarded
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_koleo_of_a_single_image_is_zero() -> None:
    lonely = torch.randn(2, 1, 8, requires_grad=True)
    loss = koleo_loss(lonely)
    loss.backward()
    assert loss.item() == 0
    assert lonely.grad is not None
    assert lonely.grad.eq(0).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(2, 8), st.floats(0, 1), st.floats(0.03, 1.0), st.integers(0, 100))
def test_centering_is_softmax_and_a_moving_mean(
    rows: int, k: int, momentum: float, temperature: float, seed: int
) -> None:
    logits = torch.randn(rows, k, generator=seeded(seed), dtype=torch.float64)
    center = torch.randn(1, k, generator=seeded(seed + 1), dtype=torch.float64)
    found = centered_softmax(logits, center, temperature)
    torch.testing.assert_close(found, torch.softmax((logits - center) / temperature, 1))
    torch.testing.assert_close(found.sum(1), torch.ones(rows, dtype=torch.float64))
    old = center.clone()
    torch.testing.assert_close(
        update_center(center, logits, momentum), momentum * old + (1 - momentum) * logits.mean(0, keepdim=True)
    )
    assert torch.equal(center, old)  # the state is the caller's
    assert torch.equal(update_center(center, logits[:0], momentum), center)


def test_center_settles_on_the_mean() -> None:
    center = torch.zeros(4)
    logits = torch.tensor([[1.0, 2, 3, 4], [3, 2, 1, 0]])
    for _ in range(200):
        center = update_center(center, logits)
    torch.testing.assert_close(center, logits.mean(0))


def test_gram_by_hand() -> None:
    student = torch.randn(2, 3, 4, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 6, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    total = 0.0
    for b in range(2):
        for i in range(3):
            for j in range(3):
                s = F.cosine_similarity(student[b, i], student[b, j], dim=0)
                t = F.cosine_similarity(teacher[b, i], teacher[b, j], dim=0)
                total += (s - t).square().item()
    loss = gram_loss(student, teacher)
    assert loss.item() == pytest.approx(total / 18, rel=1e-9)
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None
    teacher = teacher.detach()
    assert float(gram_loss(teacher * 3, teacher)) == pytest.approx(0, abs=1e-20)
    assert float(gram_loss(teacher * 3, teacher, normalize=False)) > 1
    rotated = student.detach() @ torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=seeded(2))).Q
    assert float(gram_loss(rotated, student.detach())) == pytest.approx(0, abs=1e-20)  # only similarities count


def test_gram_without_negative_similarities() -> None:
    student, teacher = torch.tensor([[[1.0, 0], [-1, 0]]]), torch.tensor([[[1.0, 0], [0, 1]]])
    assert float(gram_loss(student, teacher)) == pytest.approx(0.5)
    assert float(gram_loss(student, teacher, positive_only=True)) == 0


def test_patches_of_a_larger_teacher_come_down_to_the_students_grid() -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 24), indexing="ij")
    patches = torch.stack([rows, columns], -1).view(1, 384, 2)
    small = resample_patches(patches, (16, 24), (8, 12)).view(8, 12, 2)
    halves = torch.stack([F.avg_pool2d(part[None, None], 2)[0, 0] for part in (rows, columns)], -1)
    torch.testing.assert_close(small[2:-2, 2:-2], halves[2:-2, 2:-2])  # a ramp stays a ramp, away from the edges
    assert resample_patches(patches, (16, 24), (16, 24)) is patches


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu_every_loss_and_gradient_is_the_cpus_in_fp32(dtype: torch.dtype) -> None:
    """Logits and features as the network gives them; what is made of them is computed in fp32 on any device."""
    masks = torch.rand(8, 9, generator=seeded(1)) < 0.4
    hidden = masked_patches(masks)
    shapes = {"large": (8, 64), "small": (12, 64), "patches": (len(hidden.weights), 64), "cls": (2, 4, 16)}
    given = {name: torch.randn(shape, generator=seeded(i)).to(dtype) for i, (name, shape) in enumerate(shapes.items())}
    given["gram"] = torch.randn(2, 9, 16, generator=seeded(9)).to(dtype)
    logits = {name: torch.randn(shapes[name], generator=seeded(20 + i)) for i, name in enumerate(("large", "patches"))}

    def everything(device: str, kind: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        own = {name: value.to(device, kind).detach().requires_grad_() for name, value in given.items()}
        said = {name: value.to(device) for name, value in logits.items()}
        center = torch.linspace(-1, 1, 64, device=device)
        targets = sinkhorn_knopp(said["large"], 0.07)
        softened = centered_softmax(said["patches"], center, 0.07)
        where = masked_patches(masks.to(device))
        assert torch.equal(where.positions.cpu(), hidden.positions)
        dino = dino_loss(own["large"], own["small"], targets)
        values = [
            *dino,
            ibot_loss(own["patches"], softened, where.weights, 8),
            koleo_loss(own["cls"]),
            gram_loss(own["gram"], own["gram"].detach().flip(1) * 2),
        ]
        torch.stack(values).sum().backward()
        return [*values, targets, softened, update_center(center, said["large"])], [
            value.grad for value in own.values() if value.grad is not None
        ]

    found, expected = everything("cuda", dtype), everything("cpu", torch.float32)
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-5, rtol=1e-4)
    assert len(found[1]) == len(expected[1]) == len(given)
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    for ours, theirs in zip(found[1], expected[1], strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours.cpu().float(), theirs, atol=scale * (1e-4 + rounding), rtol=rounding)
