"""Masks: how many crops, how much of each, blocks, independence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from components.learning.masks import MaskParams, _place_block, block_mask, sample_masks

GRID = (16, 16)


def draw(n: int, seed: int = 0, grid: tuple[int, int] = GRID, **changes: object) -> torch.Tensor:
    return sample_masks(n, grid, MaskParams.model_validate(changes), np.random.default_rng(seed))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 12),
    st.integers(1, 17),
    st.integers(1, 17),
    st.floats(0, 1),
    st.floats(0, 0.5),
    st.floats(0.5, 1),
    st.integers(0, 99),
)
def test_never_more_than_asked_for(
    n: int, rows: int, columns: int, p: float, low: float, high: float, seed: int
) -> None:
    masks = draw(n, seed, (rows, columns), probability=p, ratio_min=low, ratio_max=high)
    assert masks.shape == (n, rows * columns)
    assert masks.dtype == torch.bool
    assert int(masks.any(1).sum()) <= int(n * p)
    assert int(masks.sum(1).max() if n else 0) <= high * rows * columns


def test_half_of_the_crops_are_masked_and_ratios_are_stratified() -> None:
    shares = []
    for seed in range(30):
        masks = draw(32, seed).float().mean(1)
        assert int((masks > 0).sum()) == 16
        shares.append(masks[masks > 0].sort().values)
    mean = torch.stack(shares).mean(0)
    edges = torch.linspace(0.1, 0.5, 17)
    for found in shares:  # batch by batch: at least i crops lie below the i-th step's upper edge
        assert (found <= edges[1:]).all()
    # in order of size the i-th lies in the i-th step, less what a block could not be placed for
    assert ((mean < edges[1:] + 0.005) & (mean > edges[:-1] - 0.05)).all()
    assert float(mean.mean()) == pytest.approx(0.3, abs=0.02)


def test_every_step_from_the_least_to_the_greatest_share_is_drawn_from_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is aimed at, before blocks find a place or not; uniform within its step."""
    targets: list[int] = []
    monkeypatch.setattr("components.learning.masks.block_mask", lambda mask, target, *_: targets.append(target))
    for seed in range(150):
        draw(32, seed, grid=(100, 100))
    found = np.array(targets).reshape(150, 16) / 10_000
    edges = np.linspace(0.1, 0.5, 17)
    assert ((found >= edges[:-1] - 1e-4) & (found <= edges[1:])).all()
    within = (found - edges[:-1]) / np.diff(edges)
    assert stats.kstest(within.flatten(), "uniform").pvalue > 0.01


def placed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every call's room, and what it added, as blocks are placed from here on."""
    import components.learning.masks as module

    seen: list[tuple[int, int]] = []
    place = module._place_block

    def record(mask: np.ndarray, room: int, *rest: Any) -> int:
        seen.append((room, place(mask, room, *rest)))
        return seen[-1][1]

    monkeypatch.setattr(module, "_place_block", record)
    return seen


def test_no_block_has_more_room_than_half_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = placed(monkeypatch)
    for seed in range(20):
        block_mask(np.zeros(GRID, dtype=bool), 250, MaskParams(), np.random.default_rng(seed))
    rooms, added = np.array(seen).T
    assert rooms.max() == 128
    assert added.max() <= 128
    assert (rooms[added == 0] > 0).all()


def test_a_blocks_room_is_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = placed(monkeypatch)
    block_mask(np.zeros(GRID, dtype=bool), 100, MaskParams(), np.random.default_rng(1))
    left = 100
    for room, added in seen:
        assert room == left
        left -= added
    assert len(seen) > 1


def test_area_of_a_block_is_uniform_and_its_aspect_log_uniform() -> None:
    """On a grid so fine that rounding to whole patches is nothing, and so large that every block fits."""
    params = MaskParams(tries=1, min_patches=2000)
    mask, found = np.zeros((400, 400), dtype=bool), []
    generator = np.random.default_rng(0)
    for _ in range(1500):
        if _place_block(mask, 20_000, params, generator):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            found.append((len(rows), len(columns)))
            mask[rows[0] : rows[-1] + 1] = False
    assert len(found) > 1450  # the others would be larger than 20,000 by rounding
    height, width = np.array(found, float).T
    area = (height * width - 2000) / 18_000
    assert stats.kstest(area, "uniform").pvalue > 0.01
    aspect = np.log(height / width) / np.log(1 / 0.3)
    assert stats.kstest(aspect, stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.07


def test_the_two_crops_of_an_image_are_masked_independently() -> None:
    n, trials = 16, 400
    flags = torch.stack([draw(n, seed).any(1) for seed in range(trials)]).float()
    assert ((flags.mean(0) - 0.5).abs() < 0.11).all()  # any crop, half of the time (sd 0.025)
    both = (flags[:, : n // 2] * flags[:, n // 2 :]).mean()
    assert float(both) == pytest.approx(0.5 * 7 / 15, abs=0.03)  # without replacement: 8 of 16
    sizes = torch.stack([draw(n, seed).float().mean(1) for seed in range(trials)])
    assert ((sizes.mean(0) - sizes.mean()).abs() < 0.04).all()  # no place in the batch is masked more


class OneBlock(np.random.Generator):
    """Nothing but a generator of its own type, to see that a subclass will do."""


def test_blocks_are_rectangles_smaller_than_the_grid() -> None:
    params = MaskParams(tries=1)
    for seed in range(200):
        mask = np.zeros(GRID, dtype=bool)
        added = _place_block(mask, 100, params, OneBlock(np.random.PCG64(seed)))
        if not added:
            assert not mask.any()
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == height * width == added <= 100
        assert height < 16
        assert width < 16
        assert added >= 3  # four patches, less rounding
        assert 0.3 * 0.6 <= height / width <= 1 / 0.3 / 0.6


def test_under_fills_when_no_block_fits() -> None:
    tall = np.zeros((3, 40), dtype=bool)
    block_mask(tall, 100, MaskParams(min_patches=30, aspect=1.0), np.random.default_rng(0))
    assert tall.sum() == 0  # a square of 30 patches has no place in three rows
    mask = np.zeros(GRID, dtype=bool)
    block_mask(mask, 128, MaskParams(), np.random.default_rng(0))
    assert 100 <= mask.sum() <= 128


def test_same_generator_same_masks_and_torchs_will_do() -> None:
    assert torch.equal(draw(8, 3), draw(8, 3))
    assert not torch.equal(draw(8, 3), draw(8, 4))
    one, two = (sample_masks(8, GRID, MaskParams(), torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    generator = torch.Generator().manual_seed(1)
    sample_masks(8, GRID, MaskParams(), generator)
    assert not torch.equal(sample_masks(8, GRID, MaskParams(), generator), one)


def test_cyclic_shift_hides_every_place_alike() -> None:
    plain = torch.stack([draw(2, s, probability=1.0) for s in range(600)]).float().mean((0, 1)).view(GRID)
    rolled = (
        torch.stack([draw(2, s, probability=1.0, cyclic_shift=True) for s in range(600)])
        .float()
        .mean((0, 1))
        .view(GRID)
    )
    assert plain[7:9, 7:9].mean() > 1.8 * plain[[0, 0, -1, -1], [0, -1, 0, -1]].mean()  # corners are seldom hidden
    assert float(rolled.std() / rolled.mean()) < 0.08
    assert float(plain.mean()) == pytest.approx(float(rolled.mean()), rel=0.05)


def test_extremes_and_bad_ratios() -> None:
    assert draw(4, probability=0.0).sum() == 0
    assert draw(4, ratio_min=0.0, ratio_max=0.0).sum() == 0
    with pytest.raises(ValueError, match=r"ratio_min 0\.6 is above ratio_max 0\.5"):
        MaskParams(ratio_min=0.6)
