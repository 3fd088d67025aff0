"""Heads fitted on pixels: the loss is that of the enlarged logits, and what no pixel shows is never predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from components.errors import VitrailError
from components.evaluation.dense_files import IGNORE
from components.evaluation.dense_set import DenseBenchmark, Truth
from components.evaluation.labelled_set import Benchmark
from components.evaluation.patch_tokens import PatchExtractor, Reading, cells
from components.evaluation.pixel_heads import PixelFitParams, Source, fit_segmentation, folded, share_of
from components.evaluation.segmentation import ABSENT

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


def source(masks: list[np.ndarray], classes: int = 3) -> Source:
    pictures = Gray()
    benchmark = Benchmark("mine", [f"mine/{n}" for n in range(8)], pictures, {}, {}, np.arange(8) >= 6)
    names = [f"class {number}" for number in range(classes)]
    truth = Truth("segmentation", pictures.bytes, lambda row: masks[row], str, names)
    extractor = PatchExtractor(8, lambda batch, _: cells(batch, batch.shape[1] // 8)[:, :, :1])
    return Source(extractor, DenseBenchmark(benchmark, truth), 16, Reading())


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
