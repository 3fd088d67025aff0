"""Paired tests agree with values worked out by hand, and with SciPy's own correction."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluation.statistics.significance import holm, mcnemar, sign_flip


def test_mcnemar_counts_only_images_on_which_models_disagree() -> None:
    ours = np.array([True] * 6 + [False] * 1 + [True] * 50)
    theirs = np.array([False] * 6 + [True] * 1 + [True] * 50)
    assert mcnemar(ours, theirs) == pytest.approx(2 * (1 + 7) / 2**7)  # 6 of 7 or more, both sides
    assert mcnemar(ours, theirs) == mcnemar(theirs, ours)
    assert mcnemar(ours, ours) == 1.0
    with pytest.raises(ValueError, match="shapes"):
        mcnemar(ours, theirs[:3])


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_flipped_signs_agree_with_scipys_permutation_test() -> None:
    from scipy.stats import permutation_test

    generator = np.random.default_rng(0)
    for shift in (0.0, 0.3, 1.0):
        ours, theirs = generator.normal(shift, 1, 12), generator.normal(0, 1, 12)
        exact = permutation_test(
            (ours, theirs), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
        ).pvalue
        assert sign_flip(ours, theirs) == pytest.approx(exact, abs=0.015)
        gaps = np.append(ours, np.nan), np.append(theirs, 5.0)
        assert sign_flip(*gaps) == pytest.approx(sign_flip(ours, theirs), abs=0.02)
    assert sign_flip(ours, ours) == 1.0
    with pytest.raises(ValueError, match="shapes"):
        sign_flip(ours, theirs[:3])
