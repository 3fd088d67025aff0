"""Revisited Oxford and Paris (Radenovic et al. 2018): mAP and mP@k of the easy, medium and hard protocols.

The ground truth names for each query the easy, hard and junk images of the database. Junk images are taken out of the
ranking. Easy: easy ones are right, hard ones junk. Medium: both are right. Hard: hard ones are right, easy ones junk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.evaluation.sets.revisited_set import GroundTruth

LEVELS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # right, junk
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
RANKS = (1, 5, 10)


class DifficultyScores(NamedTuple):
    """Shares of 0 ... 1, over the queries that have something to find."""

    map: float
    precision: dict[int, float]  # mP@k
    queries: int


def score(
    similarities: npt.NDArray[np.floating], truth: GroundTruth, ranks: Sequence[int] = RANKS
) -> dict[str, DifficultyScores]:
    """The three levels from similarities [queries, database]; equal ones are in the database's order, as there.

    Raises:
        VitrailError: another shape, or numbers that are not finite.
    """
    if similarities.shape != (len(truth.queries), len(truth.database)):
        raise VitrailError(
            f"revisited retrieval: similarities {similarities.shape} of {len(truth.queries)} queries and "
            f"{len(truth.database)} images"
        )
    if not np.isfinite(similarities).all():
        raise VitrailError("revisited retrieval: similarities hold NaN or infinity; the network has diverged")
    order = np.argsort(-similarities, axis=1, kind="stable")
    found = {}
    for level, (right, junk) in LEVELS.items():
        precisions, at = [], []
        for ranking, marks in zip(order, truth.marks, strict=True):
            wanted = np.concatenate([marks[name] for name in right])
            if len(wanted):
                kept = ranking[~np.isin(ranking, np.concatenate([marks[name] for name in junk]))]
                places = np.flatnonzero(np.isin(kept, wanted))
                precisions.append(trapezoid_precision(places))
                at.append([_precision_at(places + 1, k) for k in ranks])
        means = np.mean(at, axis=0) if at else np.full(len(ranks), np.nan)
        found[level] = DifficultyScores(
            float(np.mean(precisions)) if precisions else float("nan"),
            dict(zip(ranks, means.tolist(), strict=True)),
            len(precisions),
        )
    return found


def trapezoid_precision(places: npt.NDArray[np.integer]) -> float:
    """Average precision from the zero-based places of the right images, by the trapezoid rule as the official code."""
    found = np.arange(len(places))
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    after = (found + 1) / (places + 1)
    return float((before + after).sum() / 2 / len(places))


def _precision_at(places: npt.NDArray[np.integer], k: int) -> float:
    """Precision among the first k, or among as many as reach the last right image if that is earlier."""
    reach = min(int(places.max()), k)
    return float((places <= reach).sum() / reach)
