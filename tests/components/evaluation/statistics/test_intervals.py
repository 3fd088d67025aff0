"""Intervals agree with scipy and with a bootstrap that really draws images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from components.evaluation.statistics.intervals import paired_difference, wilson


@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(trials: int, share: float, confidence: float) -> None:
    successes = round(share * trials)
    ours = wilson(successes, trials, confidence)
    theirs = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_wilson_of_nothing_is_refused() -> None:
    for successes, trials in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="trials"):
            wilson(successes, trials)


def test_the_paired_bootstrap_equals_drawing_images() -> None:
    generator = np.random.default_rng(1)
    ours, theirs = generator.random(400) < 0.8, generator.random(400) < 0.7
    found = paired_difference(ours, theirs, samples=20_000)
    drawn = generator.integers(0, 400, (20_000, 400))
    differences = (ours[drawn].mean(1)) - (theirs[drawn].mean(1))
    assert found.value == pytest.approx(ours.mean() - theirs.mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.004)
    assert paired_difference(ours, theirs) == paired_difference(ours, theirs)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_a_difference_is_inside_its_interval_and_turns_its_sign(wins: int, losses: int, ties: int) -> None:
    if wins + losses + ties == 0:
        return
    ours = np.array([True] * wins + [False] * losses + [True] * ties)
    theirs = np.array([False] * wins + [True] * losses + [True] * ties)
    found = paired_difference(ours, theirs, samples=500)
    assert found.low - 1e-12 <= found.value <= found.high + 1e-12 or wins + losses < 8
    assert paired_difference(theirs, ours, samples=500).value == -found.value
    assert paired_difference(ours, ours, samples=500) == (0, 0, 0)


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for seed in range(400):
        both = generator.random(300)
        ours, theirs = both < 0.75, (both < 0.6) | (both > 0.95)  # a true difference of 0.10
        low, high = paired_difference(ours, theirs, samples=400, seed=seed)[1:]
        hits += low <= 0.10 <= high
    assert 0.91 <= hits / 400 <= 0.98
