"""Whether two models differ: McNemar's exact test, a permutation test, and Holm's correction for many tests."""

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


def sign_flip(
    ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating], samples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value that two models have the same mean over the cases both have; 1 if they never differ.

    Under that hypothesis the sign of each difference is a fair coin: a paired permutation test, ``samples`` draws.

    Args:
        ours, theirs: [n], a value a case; NaN where a model has none.

    Raises:
        ValueError: different lengths.
    """
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"paired values of shapes {ours.shape} and {theirs.shape}")
    gaps = (ours - theirs)[~(np.isnan(ours) | np.isnan(theirs))]
    if not gaps.any():
        return 1.0
    seen = abs(gaps.sum()) * (1 - 1e-9)  # sums of the same numbers in another order count as equal
    generator, extreme = np.random.default_rng(seed), 0
    for start in range(0, samples, 1000):
        signs = generator.integers(0, 2, (min(1000, samples - start), len(gaps))) * 2 - 1
        extreme += int((np.abs(signs @ gaps) >= seen).sum())
    return (1 + extreme) / (1 + samples)
