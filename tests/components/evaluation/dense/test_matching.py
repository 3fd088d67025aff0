"""Matching: a view is what its numbers say, the same spot is found by what tells it apart, and else by chance."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluation.dense.matching import MatchingParams, View, centres, match, seen
from components.evaluation.features.patch_tokens import PatchExtractor, raw_patches
from components.evaluation.sets.labelled_set import Benchmark

PARAMS = MatchingParams(image_size=64, images=6, samples=100)


class Photographs:
    """Smooth pictures, their colours drawn anew at 8 x 8 points."""

    def __len__(self) -> int:
        return 8

    def bytes(self, row: int) -> bytes:
        return self.rgb(row).tobytes()

    def rgb(self, row: int) -> np.ndarray:
        from components.learning.crops import resize

        return resize(np.random.default_rng(row).integers(0, 256, (8, 8, 3), np.uint8), 64)


def benchmark() -> Benchmark:
    return Benchmark("mine", [f"mine/{row}" for row in range(8)], Photographs(), {}, {}, np.arange(8) >= 2)


def test_a_view_puts_each_point_where_it_says() -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[20:24, 40:44] = 255
    spot = (np.array([42, 22]) - 32) / 32  # (x, y) of the mark
    angle = np.pi / 6
    turn = 0.9 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    view = View(turn, np.array([0.1, -0.05]), 1.0)
    out = seen(rgb, view)[..., 0].astype(float)
    rows, columns = np.mgrid[:64, :64] + 0.5
    found = np.array([(columns * out).sum(), (rows * out).sum()]) / out.sum()
    assert (found - 32) / 32 == pytest.approx(turn @ spot + view.shift, abs=0.01)
    assert np.allclose(seen(rgb, View(np.eye(2), np.zeros(2), 0.5)), rgb * 0.5, atol=1)


def test_patches_that_can_be_told_apart_are_found() -> None:
    still = PARAMS.model_copy(update={"degrees": 0.0, "scale": (1.0, 1.0), "shift": 0.0, "brightness": 0.0})
    assert (match(raw_patches(), benchmark(), still) == 1).all()
    moved = match(raw_patches(), benchmark(), PARAMS)
    assert moved.shape == (6,)
    assert 0 <= moved.min() <= moved.max() <= 1
    assert (match(raw_patches(), benchmark(), PARAMS) == moved).all()


def test_tokens_that_are_all_alike_find_no_more_than_one_spot() -> None:
    same = PatchExtractor(8, lambda batch, _: np.ones((len(batch), 64, 3), np.float32))
    assert match(same, benchmark(), PARAMS).max() < 0.15


def test_a_view_that_leaves_the_picture_has_no_score() -> None:
    away = PARAMS.model_copy(update={"scale": (100.0, 100.0), "shift": 0.0})
    assert np.isnan(match(raw_patches(), benchmark(), away)).all()
    assert np.allclose(centres(2), [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])
