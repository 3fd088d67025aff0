"""The gram teacher: when it is taken, what its term reaches, and the crops it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from components.errors import VitrailError
from components.learning.augment import AugmentParams, MultiCrop
from components.learning.collate import Crops, collate, collate_bytes, normalize_crops
from components.learning.losses.gram import gram_loss, resample_patches
from components.learning.vit import VisionTransformer, ViTConfig
from components.params import parse_params
from components.training.params import TrainingParams
from components.training.sharded.gram_teacher import GramParams, GramTeacher

CONFIG = ViTConfig(image_size=16, patch_size=4, embed_dim=12, depth=1, heads=2, layerscale_init=1.0)
PARAMS = GramParams(weight=2.0, teacher_at=2, start=4, refresh_every=3, refreshes=2)


class Frozen:
    """A module as DeepSpeed hands it out, unpartitioned."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.requires_grad_(False)

    def __call__(self, images: Tensor) -> Any:
        return self.module(images)


class PlainEngine:
    """What a gram teacher asks of an engine, on one process; the average is a number that changes by the step."""

    dtype = torch.float32

    def __init__(self, student: VisionTransformer) -> None:
        self.student, self.step = student, 0
        self.ema = self

    def state(self) -> dict[str, Tensor]:
        return {f"backbone.{n}": p.detach() + 0.01 * self.step for n, p in self.student.named_parameters()}

    def frozen(self, module: nn.Module) -> Frozen:
        return Frozen(module)

    @torch.no_grad()
    def write(self, frozen: Frozen, shards: Mapping[str, Tensor]) -> None:
        for name, parameter in frozen.module.named_parameters():
            parameter.copy_(shards[name])


def made() -> tuple[GramTeacher, PlainEngine, VisionTransformer]:
    student = VisionTransformer(CONFIG)
    engine = PlainEngine(student)
    return GramTeacher(PARAMS, engine, VisionTransformer(CONFIG), (4, 4)), engine, student  # type: ignore[arg-type]


def crops(*sizes: int) -> Crops:
    generator = torch.Generator().manual_seed(0)
    groups = [torch.randn(2, 3, size, size, generator=generator) for size in sizes]
    return Crops(groups[0], torch.empty(0), *groups[1:])


def test_it_is_taken_once_and_refreshed_a_few_times() -> None:
    gram, engine, _ = made()
    taken, counts = [], []
    for step in range(20):
        engine.step = step
        table = gram._network.module.embeddings.pos_embed.clone()
        gram.before(step)
        if not torch.equal(table, gram._network.module.embeddings.pos_embed):
            taken.append(step)
        counts.append(gram.counts)
    assert taken == [2, 7, 10]
    assert counts == [step >= 4 for step in range(20)]


def test_the_term_is_zero_until_it_counts_then_teaches_the_student_alone() -> None:
    gram, _, student = made()
    gram.before(2)
    seen = crops(16)
    assert float(gram.loss(student(seen.globals).patches, seen)) == 0
    gram.before(4)
    with torch.no_grad():
        student.blocks[0].mlp.fc2.weight.add_(0.1 * torch.randn(12, 48, generator=torch.Generator().manual_seed(1)))
    patches = student(seen.globals).patches
    loss = gram.loss(patches, seen)
    loss.backward()
    assert float(student.blocks[0].mlp.fc2.weight.grad.abs().max()) > 0
    assert all(p.grad is None for p in gram._network.module.parameters())
    expected = 2.0 * gram_loss(patches, gram._network(seen.globals).patches)
    assert torch.equal(loss, expected)


def test_larger_crops_are_brought_to_the_students_grid() -> None:
    gram, _, student = made()
    gram.before(2)
    gram.before(4)
    seen = crops(16, 32)
    patches = student(seen.globals).patches
    larger = resample_patches(gram._network(seen.anchors).patches, (8, 8), (4, 4))  # type: ignore[arg-type]
    assert larger.shape == patches.shape
    assert torch.equal(gram.loss(patches, seen), 2.0 * gram_loss(patches, larger))


def test_anchors_show_what_the_global_crops_show_and_cost_no_draw() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    plain = AugmentParams.model_validate(
        {
            "global_size": 24, "local_size": 8, "locals": 2, "vflip": 0.5, "rot90": 0.5, "grayscale": 0.0,
            "jitter": {"probability": 0.0}, "blur": [0, 0, 0], "solarize": [0, 0, 0],
        }
    )  # fmt: skip
    for seed in range(8):
        alone = MultiCrop(plain)(photo, np.random.default_rng(seed))
        both = MultiCrop(plain, anchors=24)(photo, np.random.default_rng(seed))
        assert (alone.globals == both.globals).all()
        assert (alone.locals == both.locals).all()
        assert alone.anchors is None
        assert (both.anchors == both.globals).all()  # turned and mirrored alike
    coloured = AugmentParams.model_validate(plain.model_dump() | {"solarize": (1.0, 1.0, 1.0)})
    sample = MultiCrop(coloured, anchors=48)(photo, np.random.default_rng(0))
    uncoloured = MultiCrop(plain, anchors=48)(photo, np.random.default_rng(0))
    assert sample.anchors is not None
    assert sample.anchors.shape == (2, 3, 48, 48)
    assert (sample.anchors == uncoloured.anchors).all()
    raw = collate_bytes([sample, sample])
    assert raw.anchors is not None
    assert raw.anchors.shape == (4, 3, 48, 48)
    found, wanted = normalize_crops(raw, coloured).anchors, collate([sample, sample], coloured).anchors
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        ({"teacher_at": 50, "start": 20}, "start 20 lies before teacher_at 50"),
        ({"teacher_at": 0.5, "start": 20}, "expected 0 < teacher_at <= start < run.iterations, found 50, 20 and 100"),
        ({"teacher_at": 0, "start": 20}, "found 0, 20 and 100"),
        ({"teacher_at": 20, "start": 100}, "found 20, 100 and 100"),
        ({"teacher_at": 20, "start": 40, "size": 17}, "gram.size 17 is no multiple of vit.patch_size 4"),
    ],
)
def test_times_and_sizes_that_do_not_fit_are_one_line(gram: dict[str, Any], message: str) -> None:
    content = {
        "vit": CONFIG.model_dump(),
        "heads": {"dino": {"prototypes": 8}},
        "augment": {"global_size": 16, "local_size": 8},
        "schedule": {},
        "run": {"iterations": 100, "batch": 2},
        "gram": gram,
    }
    with pytest.raises(VitrailError) as fault:
        parse_params(content, TrainingParams, "own.yaml")
    assert message in str(fault.value)
    assert "\n" not in str(fault.value)
