"""Masks through a video: a moving object is followed, J and F are as DAVIS counts them, files as it ships them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.errors import VitrailError
from components.evaluation.dense.propagation import (
    ObjectScore,
    PropagationParams,
    boundary_f,
    follow,
    propagate,
    region_iou,
)
from components.evaluation.features.patch_tokens import PatchExtractor, cells
from components.evaluation.sets.benchmarks import BenchmarksFile, load_benchmark
from components.evaluation.sets.video_set import VideoSet, load_davis
from components.params import parse_params

PARAMS = PropagationParams(image_size=48, samples=100)
SIDE = 48


def pixels() -> PatchExtractor:
    return PatchExtractor(4, lambda batch, _: cells(batch, batch.shape[1] // 4))


def frames(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two squares that cross a noisy picture, 48 x 72 px."""
    generator = np.random.default_rng(0)
    pictures, masks = [], []
    for step in range(count):
        rgb = generator.integers(60, 90, (SIDE, 72, 3)).astype(np.uint8)
        mask = np.zeros((SIDE, 72), np.uint8)
        for number, (top, left, colour) in enumerate(
            ((4, 4 + 4 * step, (220, 30, 30)), (28, 52 - 4 * step, (30, 30, 220))), 1
        ):
            rgb[top : top + 16, left : left + 16] = colour
            mask[top : top + 16, left : left + 16] = number
        pictures.append(rgb)
        masks.append(mask)
    return pictures, masks


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    pictures, masks = frames(5)
    for number, (rgb, mask) in enumerate(zip(pictures, masks, strict=True)):
        for part, name, picture in (
            ("JPEGImages", "jpg", Image.fromarray(rgb)),
            ("Annotations", "png", Image.fromarray(mask)),
        ):
            folder = tmp_path / part / "480p/squares"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{number:05d}.{name}")
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("squares\n")
    return tmp_path


def load(root: Path) -> VideoSet:
    file = parse_params({"davis": {"kind": "davis", "path": str(root)}}, BenchmarksFile, "here")
    assert load_benchmark("davis", file.benchmarks["davis"]).kept_out("test").all()
    return load_davis("davis", file.videos["davis"])


def test_objects_are_followed(davis: Path) -> None:
    video = load(davis)
    found = follow(pixels(), video, PARAMS)
    assert len(found) == 2
    assert min(min(quality) for quality in found) > 0.8
    assert load(davis).digest == video.digest


def test_a_still_picture_keeps_its_mask() -> None:
    pictures, masks = frames(1)
    for ours in propagate(pixels(), pictures * 3, masks[0], PARAMS):
        assert region_iou(ours == 1, masks[0] == 1) > 0.98  # corners are rounded
    only_first = PARAMS.model_copy(update={"frames": 0})
    assert (
        region_iou(propagate(pixels(), pictures * 3, masks[0], only_first)[2] == 2, masks[0] == 2) > 0.98
    )  # corners are rounded


def test_region_and_boundary_by_hand() -> None:
    empty, square, moved = np.zeros((100, 100), bool), np.zeros((100, 100), bool), np.zeros((100, 100), bool)
    square[20:40, 20:40] = True
    moved[20:40, 30:50] = True
    assert region_iou(square, moved) == pytest.approx(200 / 600)
    assert (region_iou(empty, empty), boundary_f(empty, empty)) == (1.0, 1.0)
    assert (region_iou(empty, square), boundary_f(empty, square)) == (0.0, 0.0)
    assert boundary_f(square, square) == 1.0
    near = np.roll(square, 2, axis=1)  # 0.008 of the diagonal is 1.1 px, rounded up to 2
    assert boundary_f(near, square) == 1.0
    assert 0 < boundary_f(moved, square) < 0.8
    assert ObjectScore(0.5, 1.0).boundary == 1.0


def test_what_is_missing_is_named(davis: Path) -> None:
    (davis / "Annotations/480p/squares/00003.png").unlink()
    with pytest.raises(VitrailError, match=r"00003\.png: no such mask \(1 are missing\)"):
        load(davis)
    (davis / "ImageSets/2017/val.txt").write_text("squares\ngone\n")
    with pytest.raises(VitrailError, match="no such"):
        load(davis)
    (davis / "ImageSets/2017/val.txt").unlink()
    with pytest.raises(VitrailError, match=r"val\.txt: no such list of videos"):
        load(davis)
