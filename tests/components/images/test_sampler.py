from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from components.errors import VitrailError
from components.images.sampler import Sampler, replacements, sample_generator


def epoch_rows(sampler: Sampler, epoch: int) -> list[int]:
    return [row for _, _, row in sampler.draws(epoch, 0, sampler.length(epoch))]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**40), st.integers(1, 64), st.integers(1, 32), st.integers(0, 3), st.data())
def test_every_epoch_is_a_permutation_and_any_cut_agrees(
    rows: int, seed: int, block: int, run: int, epoch: int, data: st.DataObject
) -> None:
    sampler = Sampler(rows, seed, block=block, run=run)
    assert sorted(epoch_rows(sampler, epoch)) == list(range(rows))
    whole = sampler.draws(epoch, 0, rows * 2 + 10)
    cut = data.draw(st.integers(0, rows * 2 + 4))
    at = sampler.after(epoch, 0, cut)
    assert whole[cut][:2] == at
    other = Sampler(rows, seed, block=block, run=run)
    assert other.draws(*at, 5) == whole[cut : cut + 5]


def test_seeds_and_epochs_differ() -> None:
    orders = {tuple(epoch_rows(Sampler(50, seed), epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_run_length_does_not_matter_where_one_block_is_all() -> None:
    assert epoch_rows(Sampler(200, 1, run=8), 2) == epoch_rows(Sampler(200, 1, run=64), 2)


def test_small_sets_are_permuted_uniformly() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(4800):
        order = tuple(epoch_rows(Sampler(4, seed), 0))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_blocks_keep_reading_local_and_still_spread() -> None:
    """Within a block few runs are open; every block draws from all over the set; which runs come first is uniform."""
    sampler = Sampler(10_000, 0, block=400, run=20)
    order = np.array(epoch_rows(sampler, 0))
    blocks = order.reshape(-1, 400)
    assert all(len(np.unique(b // 20)) == 20 for b in blocks)
    assert np.mean([np.ptp(b) for b in blocks]) > 8000
    first = np.concatenate(
        [np.unique(np.array(Sampler(10_000, s, block=400, run=20).draws(0, 0, 400))[:, 2] // 20) for s in range(40)]
    )
    assert stats.chisquare(np.bincount(first // 50, minlength=10)).pvalue > 0.01


def test_weights_are_expected_draws() -> None:
    weights = np.array([0.0, 0.25, 1.0, 2.5, 4.0], np.float32)
    sampler = Sampler(5, 3, weights, block=4, run=2)
    counts = np.array([np.bincount(epoch_rows(sampler, e), minlength=5) for e in range(2000)])
    assert (counts >= np.floor(weights)).all()
    assert (counts <= np.ceil(weights)).all()
    assert np.abs(counts.mean(0) - weights).max() < 0.04
    assert [sampler.length(e) for e in range(5)] == counts[:5].sum(1).tolist()


def test_weighted_stream_crosses_epochs() -> None:
    sampler = Sampler(7, 1, np.linspace(0.1, 2.0, 7).astype(np.float32))
    stream = sampler.draws(0, 0, 60)
    again = list(itertools.chain.from_iterable(sampler.draws(*sampler.after(0, 0, i), 1) for i in range(60)))
    assert stream == again


def test_unit_weights_are_no_weights() -> None:
    assert epoch_rows(Sampler(30, 2, np.ones(30, np.float32)), 1) == epoch_rows(Sampler(30, 2), 1)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0, -1.0], "negative"), ([1.0, np.nan], "not a number"), ([0.2, 0.3], "less than one"), ([1.0], "1 weights")],
)
def test_bad_weights(weights: list[float], expected: str) -> None:
    with pytest.raises(VitrailError, match=expected):
        Sampler(2, 0, np.array(weights, np.float32))


def test_no_rows() -> None:
    with pytest.raises(VitrailError, match="holds no image"):
        Sampler(0, 0)


def test_generators_are_distinct_and_repeatable() -> None:
    values = {sample_generator(s, e, p).random() for s in range(3) for e in range(3) for p in range(20)}
    assert len(values) == 180
    assert sample_generator(1, 2, 3).random() == sample_generator(1, 2, 3).random()
    one, same = replacements(9, 1, 2, 3), replacements(9, 1, 2, 3)
    assert [next(one) for _ in range(50)] == [next(same) for _ in range(50)]
