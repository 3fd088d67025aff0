"""Heads fitted on pixels: the loss is that of the enlarged logits, and what no pixel shows is never predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from components.errors import VitrailError
from components.evaluation.dense.augment import DenseAugmentParams, augmented_window
from components.evaluation.dense.patch_labels import ABSENT
from components.evaluation.dense.pixel_heads import PixelFitParams, WindowSource, fit_segmentation, folded, share_of
from components.evaluation.features.patch_tokens import PatchExtractor, Reading, cells
from components.evaluation.sets.dense_files import IGNORE
from components.evaluation.sets.dense_set import DenseBenchmark, Truth
from components.evaluation.sets.labelled_set import Benchmark
from components.learning.augment import JitterParams

PARAMS = PixelFitParams(rate=5e-2, decay=0.0, steps=80, warmup=5, batch=4)


class Gray:
    """Eight pictures of 16 px whose patches of 8 px are bright or dark."""

    def __init__(self) -> None:
        bright = np.random.default_rng(0).integers(0, 2, (8, 2, 2))
        self.levels = (60 + 120 * bright).repeat(8, 1).repeat(8, 2).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.levels)

    def bytes(self, row: int) -> bytes:
        return self.levels[row].tobytes()

    def rgb(self, row: int) -> np.ndarray:
        return self.levels[row][..., None].repeat(3, 2)


def source(masks: list[np.ndarray], classes: int = 3) -> WindowSource:
    pictures = Gray()
    benchmark = Benchmark("mine", [f"mine/{n}" for n in range(8)], pictures, {}, {}, np.arange(8) >= 6)
    names = [f"class {number}" for number in range(classes)]
    truth = Truth("segmentation", pictures.bytes, lambda row: masks[row], str, names)
    extractor = PatchExtractor(8, lambda batch, _: cells(batch, batch.shape[1] // 8)[:, :, :1])
    return WindowSource(extractor, DenseBenchmark(benchmark, truth), 16, Reading())


def test_a_patch_that_shows_two_classes_gets_the_share_of_each() -> None:
    # Bright patches are class 0. Dark ones are class 1 in five of eight rows, else class 0: their largest area says 1.
    dark = np.where(np.arange(16) % 8 < 5, 1, 0)[:, None]
    masks = [np.where(rgb > 100, 0, dark) for rgb in Gray().levels]
    head = fit_segmentation(source(masks), PARAMS)
    shares = np.exp(head.levels(np.array([[180 / 255], [60 / 255]])))
    shares /= shares.sum(1, keepdims=True)
    assert shares[0, 0] > 0.9
    assert 0.5 < shares[1, 1] < 0.9  # 5/8 and what neighbours mix in; fitted on patches it would be 1
    assert head.levels(np.zeros((1, 1)))[0, 2] == ABSENT  # no pixel shows class 2


def test_augmented_windows_fit_the_same_head_and_their_labels_move_along() -> None:
    dark = np.where(np.arange(16) % 8 < 5, 1, 0)[:, None]
    masks = [np.where(rgb > 100, 0, dark) for rgb in Gray().levels]
    augment = DenseAugmentParams(scale=(0.5, 2.0), jitter=JitterParams(probability=0))
    head = fit_segmentation(source(masks), PARAMS.model_copy(update={"augment": augment, "batch": 8}))
    shares = np.exp(head.levels(np.array([[180 / 255], [60 / 255]])))
    assert shares[0, :2].argmax() == 0
    assert shares[1, :2].argmax() == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(5, 40), st.integers(5, 40), st.floats(0.2, 3))
def test_what_is_known_stays_at_its_pixel_and_beyond_the_picture_nothing_is(
    seed: int, height: int, width: int, scale: float
) -> None:
    values = np.random.default_rng(seed).integers(1, 5, (-(-height // 5), -(-width // 5))).repeat(5, 0).repeat(5, 1)
    values = values[:height, :width].astype(np.float32)
    rgb = (50 * values).astype(np.uint8)[..., None].repeat(3, 2)
    params = DenseAugmentParams(scale=(scale, scale), jitter=JitterParams(probability=0))
    square, known = augmented_window((rgb, values), 16, np.nan, params, np.random.default_rng(seed))
    assert square.shape == (16, 16, 3)
    assert known.shape == (16, 16)
    # Off the borders of its blocks, a pixel shows what is known there.
    inner = ~np.isnan(known)
    for axis in (0, 1):
        for step in (-2, -1, 1, 2):
            inner &= np.roll(known, step, axis) == known
    inner[[0, 1, -2, -1]] = inner[:, [0, 1, -2, -1]] = False
    if scale >= 1:
        assert np.abs(square[..., 0][inner] - 50 * known[inner]).max(initial=0) <= 25
        assert not np.isnan(known).any()
    elif round(16 * scale) < 16:
        assert np.isnan(known).any()


def test_colours_change_within_their_strength_and_labels_do_not() -> None:
    rgb, values = np.full((16, 16, 3), 100, np.uint8), np.arange(256).reshape(16, 16)
    jitter = JitterParams(probability=1, brightness=0.2, contrast=0, saturation=0, hue=0)
    params = DenseAugmentParams(scale=(1, 1), hflip=0, jitter=jitter)
    levels = []
    for seed in range(40):
        square, known = augmented_window((rgb, values), 16, -1, params, np.random.default_rng(seed))
        assert (known == values).all()
        levels.append(int(square[0, 0, 0]))
    assert 79 <= min(levels) < 90 < 110 < max(levels) <= 121
    mirrored = params.model_copy(update={"hflip": 1.0})
    assert (augmented_window((rgb, values), 16, -1, mirrored, np.random.default_rng(0))[1] == values[:, ::-1]).all()
    with pytest.raises(ValidationError, match="the smaller one comes first"):
        DenseAugmentParams(scale=(2.0, 1.0))


def test_normalisation_and_convolution_fold_into_one_map() -> None:
    generator = torch.Generator().manual_seed(0)
    norm, head = nn.BatchNorm2d(5), nn.Conv2d(5, 3, 1)
    with torch.no_grad():
        for part in (norm.weight, norm.bias, norm.running_mean, head.weight, head.bias):
            part.copy_(torch.randn(part.shape, generator=generator))
        norm.running_var.copy_(torch.rand(5, generator=generator) + 0.1)
    planes = torch.randn(2, 5, 4, 4, generator=generator)
    theirs = head.eval()(norm.eval()(planes)).permute(0, 2, 3, 1).reshape(-1, 3)
    mean, std, weight, bias = folded(norm, head)
    rows = planes.permute(0, 2, 3, 1).reshape(-1, 5)
    assert torch.allclose((rows - mean) / std @ weight.T + bias, theirs, atol=1e-5)


def test_the_rate_warms_up_and_falls_to_almost_nothing() -> None:
    share = share_of(PixelFitParams(steps=10, warmup=3))
    shares = [share(step) for step in range(10)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[-1] == pytest.approx(1 / 7)


def test_without_a_label_anywhere_it_says_so() -> None:
    with pytest.raises(VitrailError, match="mine: no training pixel that was drawn has a label"):
        fit_segmentation(source([np.full((16, 16), IGNORE)] * 8), PARAMS.model_copy(update={"steps": 2}))
