"""Whether two models differ: McNemar's exact test on the images both saw, and Holm's correction for many tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def mcnemar(ours: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_]) -> float:
    """Two-sided exact p-value that two models are right equally often (McNemar 1947); 1 if they never disagree.

    Args:
        ours, theirs: [n], whether each model was right about image i.

    Raises:
        ValueError: different lengths.
    """
    from scipy.stats import binomtest

    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"paired outcomes of shapes {ours.shape} and {theirs.shape}")
    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for the number of tests (Holm 1979): the chance of one false finding among all stays below."""
    order = np.argsort(values, kind="stable")
    scaled = np.asarray(values, float)[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled)) if len(values) else []
    return [float(value) for value in corrected]
