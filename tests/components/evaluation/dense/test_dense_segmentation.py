"""Segmentation of whole pictures: equal to the online probe on squares, to torchmetrics' IoU, and defined when odd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.errors import VitrailError
from components.evaluation.dense.patch_labels import Patches, dense_probe, patch_labels
from components.evaluation.dense.segmentation import (
    Counts,
    SegmentationParams,
    by_picture,
    miou,
    pixel_accuracy,
    segment,
)
from components.evaluation.features.patch_tokens import PatchExtractor, Reading, block_numbers, cells
from components.evaluation.image_level.linear import LinearParams
from components.evaluation.sets.dense_files import IGNORE
from components.evaluation.sets.dense_set import DenseBenchmark, Truth
from components.evaluation.sets.labelled_set import Benchmark

LINEAR = LinearParams(costs=[1.0], folds=2, max_iterations=100)
PARAMS = SegmentationParams(image_size=16, masks=16, patches=10_000, linear=LINEAR, k=5, samples=100)
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)


class Memory:
    def __init__(self, pictures: list[np.ndarray]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def bytes(self, row: int) -> bytes:
        return self._pictures[row].tobytes()

    def rgb(self, row: int) -> np.ndarray:
        return self._pictures[row]


def scene(generator: np.random.Generator, height: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Upright bands of colours, each a class."""
    mask = np.repeat(generator.integers(0, classes, 2), (width + 1) // 2)[None, :width].repeat(height, 0)
    noise = generator.integers(-30, 30, (height, width, 3))
    return np.clip(COLOURS[mask].astype(int) + noise, 0, 255).astype(np.uint8), mask


def made(shape: tuple[int, int] = (16, 16), train: int = 12, test: int = 6, classes: int = 3) -> DenseBenchmark:
    generator = np.random.default_rng(0)
    scenes = [scene(generator, *shape, classes) for _ in range(train + test)]
    pictures = Memory([rgb for rgb, _ in scenes])
    known = np.arange(train + test) >= train
    benchmark = Benchmark("mine", [f"mine/{n}" for n in range(train + test)], pictures, {}, {}, known)
    masks = [mask for _, mask in scenes]
    truth = Truth("segmentation", lambda row: masks[row].tobytes(), lambda row: masks[row], str, list("abc"))
    return DenseBenchmark(benchmark, truth)


def pixels(patch: int = 4) -> PatchExtractor:
    return PatchExtractor(patch, lambda batch, _: cells(batch, batch.shape[1] // patch))


def test_one_window_at_one_scale_is_the_online_probe() -> None:
    ours = made()
    found = segment(pixels(), ours, PARAMS)["linear"]
    images = np.stack([ours.read(row)[0] for row in range(18)])
    masks = np.stack([ours.read(row)[1] for row in range(18)])
    tokens, labels = cells(images, 4), patch_labels(masks, 4, 3)
    flat = tokens[:12].reshape(-1, 48)
    patches = Patches(flat, labels[:12].reshape(-1), np.repeat(np.arange(12), 16))
    probe = dense_probe(patches, tokens[12:], masks[12:], 3, LINEAR)
    assert miou(found, 100, 0).value == pytest.approx(probe.miou, abs=1e-12)
    assert pixel_accuracy(found) == pytest.approx(probe.accuracy, abs=1e-12)
    assert probe.miou > 0.8


@pytest.mark.parametrize("change", [{}, {"scales": [1.0, 1.5], "stride": 4}, {"masks": None}, {"masks": 24}])
def test_wide_pictures_are_segmented_whole(change: dict[str, object]) -> None:
    found = segment(pixels(), made((16, 40)), PARAMS.model_copy(update=change))
    assert set(found) == {"linear", "knn"}
    side = change.get("masks", 16) or 16
    for counts in found.values():
        assert counts.truth.sum() == 6 * side * round(side * 40 / 16)  # type: ignore[operator]
        assert miou(counts, 100, 0).value > 0.85


def test_the_mean_iou_is_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    generator = np.random.default_rng(3)
    truth, predicted = generator.integers(IGNORE, 4, (5, 90)), generator.integers(0, 4, (5, 90))
    theirs = MulticlassJaccardIndex(4, average="macro", ignore_index=IGNORE)
    parts = []
    for one, other in zip(truth, predicted, strict=True):
        known = one != IGNORE
        theirs.update(torch.from_numpy(other), torch.from_numpy(one))
        rows = [np.bincount(part, minlength=4) for part in (one[known & (one == other)], one[known], other[known])]
        parts.append(np.stack(rows))
    counts = Counts(*np.stack(parts).transpose(1, 0, 2))
    value = miou(counts, 200, 0)
    assert value.value == pytest.approx(float(theirs.compute()), abs=1e-6)
    assert value.low < value.value < value.high
    assert len(by_picture(counts)) == 5


def test_a_class_that_training_lacks_is_never_predicted_and_counts_as_missed() -> None:
    ours = made()
    shown = {row: ours.read(row)[1] for row in range(18)}
    without = Truth(
        "segmentation",
        ours.truth.bytes,
        lambda row: np.where(shown[row] == 2, IGNORE, shown[row]) if row < 12 else shown[row],
        str,
        list("abc"),
    )
    for counts in segment(pixels(), DenseBenchmark(ours.pictures, without), PARAMS).values():
        assert counts.predicted.sum(0)[2] == 0
        assert counts.truth.sum(0)[2] > 0
        assert 0 < miou(counts, 100, 0).value < 0.75


def test_equal_tokens_give_one_class_everywhere() -> None:
    same = PatchExtractor(4, lambda batch, _: np.ones((len(batch), (batch.shape[1] // 4) ** 2, 3), np.float32))
    for counts in segment(same, made(), PARAMS).values():
        assert (counts.predicted.sum(0) > 0).sum() == 1


def test_faults_are_named() -> None:
    broken = PatchExtractor(
        4, lambda batch, _: np.full((len(batch), (batch.shape[1] // 4) ** 2, 3), np.nan, np.float32)
    )
    with pytest.raises(VitrailError, match="NaN"):
        segment(broken, made(), PARAMS)
    with pytest.raises(VitrailError, match="fewer than two classes"):
        segment(pixels(), made(classes=1), PARAMS)
    ours = made()
    blank = Truth("segmentation", ours.truth.bytes, lambda row: np.full((16, 16), IGNORE), str, list("abc"))
    with pytest.raises(VitrailError, match="no training picture has a labelled pixel"):
        segment(pixels(), DenseBenchmark(ours.pictures, blank), PARAMS)


def test_blocks_are_the_released_heads() -> None:
    spread = Reading(4, spread=True)
    assert block_numbers(12, spread) == [2, 5, 8, 11]
    assert block_numbers(24, spread) == [4, 11, 17, 23]
    assert block_numbers(40, spread) == [9, 19, 29, 39]
    assert block_numbers(2, spread) == [0, 1]
    assert block_numbers(12, Reading(4)) == [8, 9, 10, 11]
