"""How sure an accuracy is: Wilson's interval for one model, a paired bootstrap for the difference of two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """An estimate and the bounds of its interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """The share ``successes / trials`` with Wilson's score interval (Wilson 1927; Brown, Cai, DasGupta 2001).

    Unlike the textbook interval of plus and minus it stays in [0, 1] and keeps its coverage near both ends.

    Raises:
        ValueError: not 0 <= successes <= trials, or no trials.
    """
    from scipy.stats import norm

    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials")
    z = float(norm.ppf(0.5 + confidence / 2))
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * float(np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)))
    # At the ends the formula equals 0 or 1 only up to rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(share, low, high)


def paired_difference(
    ours: npt.NDArray[np.bool_],
    theirs: npt.NDArray[np.bool_],
    *,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Accuracy of ``ours`` minus that of ``theirs`` with a percentile bootstrap over the images both were tested on.

    Args:
        ours, theirs: [n], whether each model was right about image i.

    Pairing matters: images that both get right or wrong carry no doubt about which is better. A resample of n images is
    a multinomial draw of the three possible differences (-1, 0, 1), so no index is ever drawn.

    Raises:
        ValueError: different lengths, or none.
    """
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"paired outcomes of shapes {ours.shape} and {theirs.shape}")
    count = len(ours)
    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    shares = np.array([wins, losses, count - wins - losses]) / count
    drawn = np.random.default_rng(seed).multinomial(count, shares, size=samples)
    differences = (drawn[:, 0] - drawn[:, 1]) / count
    low, high = np.quantile(differences, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval((wins - losses) / count, float(low), float(high))


def resampled(values: npt.NDArray[np.floating], samples: int, seed: int, confidence: float = 0.95) -> list[Interval]:
    """The mean of each column of ``values`` [n, columns], with a percentile bootstrap over the rows.

    Raises:
        ValueError: no rows.
    """
    count = len(values)
    if values.ndim != 2 or not count:
        raise ValueError(f"bootstrap of values of shape {values.shape}")
    generator = np.random.default_rng(seed)
    drawn = np.stack([values[generator.integers(0, count, count)].mean(0) for _ in range(samples)])
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    return [Interval(*map(float, one)) for one in zip(values.mean(0), low, high, strict=True)]
