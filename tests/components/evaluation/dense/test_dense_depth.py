"""Linear depth: what is planted is found, errors are torchmetrics', and holes count nowhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.errors import VitrailError
from components.evaluation.dense.depth import DepthHeadParams, estimate_depth, patch_depths
from components.evaluation.dense.depth_head import HeadParams, depth_errors, expected, fit_depth
from components.evaluation.dense.pixel_heads import PixelFitParams
from components.evaluation.features.patch_tokens import PatchExtractor, Reading, cells
from components.evaluation.sets.dense_set import DenseBenchmark, Truth
from components.evaluation.sets.labelled_set import Benchmark

PARAMS = DepthHeadParams(image_size=16, blocks=[1, 4], head=HeadParams(bins=32, rate=1e-2, steps=200), samples=100)


class Levels:
    """Pictures whose brightness falls with depth: 1 to 9 m, from the left to the right or the other way."""

    def __init__(self, count: int, width: int = 16) -> None:
        generator = np.random.default_rng(0)
        slopes = [np.linspace(*generator.permutation([1.0, 9.0]), width)[None].repeat(16, 0) for _ in range(count)]
        self.depths = [slope.astype(np.float32) for slope in slopes]

    def __len__(self) -> int:
        return len(self.depths)

    def bytes(self, row: int) -> bytes:
        return self.depths[row].tobytes()

    def rgb(self, row: int) -> np.ndarray:
        return (25 * self.depths[row][..., None].repeat(3, 2)).astype(np.uint8)


def made(count: int = 16, width: int = 16, depths: dict[int, np.ndarray] | None = None) -> DenseBenchmark:
    levels, changed = Levels(count, width), depths or {}
    test = np.arange(count) >= count // 2
    benchmark = Benchmark("mine", [f"mine/{n}" for n in range(count)], levels, {}, {}, test)
    truth = Truth("depth", levels.bytes, lambda row: changed.get(row, levels.depths[row]), str)
    return DenseBenchmark(benchmark, truth)


def pixels() -> PatchExtractor:
    return PatchExtractor(4, lambda batch, _: cells(batch, batch.shape[1] // 4))


@pytest.mark.parametrize("width", [16, 40])
def test_depth_that_brightness_shows_is_found(width: int) -> None:
    on_pixels = PixelFitParams(rate=3e-2, decay=0.0, steps=150, warmup=10, batch=4)
    found = estimate_depth(pixels(), made(width=width), PARAMS.model_copy(update={"pixels": on_pixels}))
    assert set(found) == {"lin1", "lin4", "lin1pixels", "lin4pixels"}
    for values in found.values():
        rmse, relative, close = values.mean(0)
        assert rmse < 0.8
        assert relative < 0.2
        assert close > 0.8
    blind = PatchExtractor(4, lambda batch, _: np.ones((len(batch), 16, 3), np.float32))
    assert estimate_depth(blind, made(), PARAMS)["lin1"].mean(0)[0] > 1.5


def test_readings_are_those_of_the_paper() -> None:
    seen = []

    def tokens(batch: np.ndarray, reading: Reading) -> np.ndarray:
        seen.append(reading)
        return cells(batch, 4)

    estimate_depth(PatchExtractor(4, tokens), made(), PARAMS)
    assert set(seen) == {Reading(1, True, True, True), Reading(4, True, False, True)}


def test_errors_are_torchmetrics_over_the_known_pixels() -> None:
    from torchmetrics.functional import mean_absolute_percentage_error, mean_squared_error

    generator = np.random.default_rng(0)
    truth, ours = generator.uniform(0.5, 9, (2, 8, 9))
    truth[0, :4] = np.nan
    truth[1, 0] = 50.0  # beyond what is scored
    known = np.isfinite(truth) & (truth < 10)
    found = depth_errors(ours, truth, (1e-3, 10.0))
    assert found is not None
    a, b = torch.from_numpy(ours[known]), torch.from_numpy(truth[known])
    assert found.rmse == pytest.approx(float(mean_squared_error(a, b, squared=False)), abs=1e-9)
    assert found.abs_rel == pytest.approx(float(mean_absolute_percentage_error(a, b)), abs=1e-9)
    assert found.delta1 == pytest.approx(float((torch.maximum(a / b, b / a) < 1.25).double().mean()))
    assert depth_errors(ours, np.full_like(truth, np.nan), (1e-3, 10.0)) is None


def test_holes_count_nowhere() -> None:
    hole = np.full((16, 16), np.nan, np.float32)
    whole = estimate_depth(pixels(), made(), PARAMS)["lin1"]
    found = estimate_depth(pixels(), made(depths={15: hole}), PARAMS)["lin1"]
    assert np.isnan(found[-1]).all()
    assert (found[:-1] == whole[:-1]).all()
    half = Levels(16).depths[0].copy()
    half[:, :6] = np.nan
    patches = patch_depths(half, 4, (1e-3, 10.0)).reshape(4, 4)
    assert np.isnan(patches[:, 0]).all()
    assert np.allclose(patches[:, 1], half[0, 6:8].mean())
    with pytest.raises(VitrailError, match="no held-out pixel has a depth"):
        estimate_depth(pixels(), made(depths=dict.fromkeys(range(8, 16), hole)), PARAMS)
    with pytest.raises(VitrailError, match="no training picture has a depth"):
        estimate_depth(pixels(), made(depths=dict.fromkeys(range(8), hole)), PARAMS)


def test_the_expectation_is_over_positive_logits() -> None:
    centres = torch.tensor([1.0, 3.0])
    assert float(expected(torch.tensor([-5.0, -5.0]), centres)) == pytest.approx(2.0)
    assert float(expected(torch.tensor([0.9, -1.0]), centres)) == pytest.approx((1.0 * 1 + 0.1 * 3) / 1.1)
    with pytest.raises(VitrailError, match="NaN"):
        fit_depth(np.full((3, 2), np.nan), np.ones(3), (0.1, 10.0), HeadParams())
    with pytest.raises(VitrailError, match="0 patches"):
        fit_depth(np.empty((0, 2)), np.empty(0), (0.1, 10.0), HeadParams())
