"""Retrieval: how well images of the same class or the same object are found by cosine similarity.

Equal similarities are one group: average precision counts them as scikit-learn does, and a rank is the worst it could
be. So the order of the files never decides a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from components.errors import VitrailError
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.statistics.intervals import Interval, resampled
from components.params import Seed, Strict

BLOCK = 1 << 25  # similarities held at once (128 MiB)


class RankingParams(Strict):
    """What is reported."""

    ranks: list[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(min_length=1)  # k of R@k
    samples: int = Field(1000, ge=100, le=1_000_000)  # bootstrap resamples of the queries
    seed: Seed = 0


class QueryRanks(NamedTuple):
    """By query with something to find [q]: its average precision, and the rank of its first right image (1: best)."""

    precision: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int64]
    without: int  # queries with nothing to find, which are left out


def retrieve(queries: LabelledFeatures, database: LabelledFeatures) -> QueryRanks:
    """Every query against the database; right are the images with the query's label.

    Raises:
        VitrailError: features that are not finite, or no query has anything to find.
    """
    ours, theirs = unit(queries.features, "query"), unit(database.features, "database")
    precisions, ranks, without = [], [], 0
    rows = max(1, BLOCK // max(1, len(theirs)))
    for start in range(0, len(ours), rows):
        similarities = ours[start : start + rows] @ theirs.T
        for scores, label in zip(similarities, queries.labels[start : start + rows], strict=True):
            right = database.labels == label
            if not right.any():
                without += 1
                continue
            precisions.append(average_precision(scores, right))
            ranks.append(1 + int((scores[~right] >= scores[right].max()).sum()))
    if not precisions:
        raise VitrailError("retrieval: no query has an image of its label in the database; check labels and split")
    return QueryRanks(np.array(precisions), np.array(ranks), without)


def figures(found: QueryRanks, params: RankingParams, confidence: float = 0.95) -> dict[str, Interval]:
    """``map`` and ``recallK`` as shares of 0 ... 1, with bootstrap intervals over the queries."""
    columns = {"map": found.precision} | {f"recall{k}": (found.rank <= k).astype(float) for k in params.ranks}
    intervals = resampled(np.stack(list(columns.values()), 1), params.samples, params.seed, confidence)
    return dict(zip(columns, intervals, strict=True))


def average_precision(
    scores: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], total: int | None = None
) -> float:
    """Average precision of one ranking [n]; equal scores are one step, as scikit-learn counts them.

    Args:
        total: right ones that there are, if some are not in the ranking; None: those that are.
    """
    total = int(right.sum()) if total is None else total
    if total < 1:
        raise ValueError("average precision of a ranking with nothing right")
    order = np.argsort(-scores, kind="stable")
    sorted_scores, hits = scores[order], np.cumsum(right[order])
    ends = np.flatnonzero(np.append(sorted_scores[1:] != sorted_scores[:-1], True))
    at = hits[ends]
    return float((np.diff(at, prepend=0) * (at / (ends + 1))).sum() / total)


def unit(features: npt.NDArray[np.floating], side: str) -> npt.NDArray[np.float32]:
    """Rows of unit length.

    Raises:
        VitrailError: they are not finite, or there are none.
    """
    if features.ndim != 2 or not len(features):
        raise VitrailError(f"retrieval: {side} features of shape {features.shape}; at least one row is needed")
    if not np.isfinite(features).all():
        raise VitrailError(f"retrieval: {side} features hold NaN or infinity; the network they come from has diverged")
    rows = np.asarray(features, np.float32)
    found: npt.NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return found


def copy_precision(
    queries: npt.NDArray[np.float32], references: npt.NDArray[np.float32], truth: Sequence[tuple[int, int]]
) -> float:
    """:func:`micro_ap` of the products of ``queries`` [Q, D] and ``references`` [R, D], without a table of all pairs.

    A block of products is held at once; each is made twice.
    """
    pairs = np.asarray(truth, np.int64).reshape(-1, 2)
    if not len(pairs):
        raise VitrailError("copy detection: 0 true pairs; at least one is needed")
    scores = np.empty(len(pairs), np.float32)
    rows = max(1, BLOCK // max(1, len(references)))
    starts = range(0, len(queries), rows)
    for start in starts:
        products = queries[start : start + rows] @ references.T
        mine = np.flatnonzero((pairs[:, 0] >= start) & (pairs[:, 0] < start + rows))
        scores[mine] = products[pairs[mine, 0] - start, pairs[mine, 1]]
    levels, right = np.unique(scores, return_counts=True)  # rising
    reached = np.zeros(len(levels) + 1, np.int64)
    for start in starts:
        products = queries[start : start + rows] @ references.T
        above = products[products >= levels[0]]
        reached += np.bincount(np.searchsorted(levels, above, side="right"), minlength=len(levels) + 1)
    every, found = reached[::-1].cumsum()[::-1][1:], right[::-1].cumsum()[::-1]
    return float((right * found / every).sum() / len(pairs))


def micro_ap(scores: npt.NDArray[np.floating], truth: Sequence[tuple[int, int]] | npt.NDArray[np.integer]) -> float:
    """Average precision of all pairs (query, reference) in one ranking, as copy detection is scored (DISC21, micro-AP).

    Args:
        scores: [Q, R], similarity of each query and reference.
        truth: pairs (query, reference) that are copies. Queries without a copy only add false pairs.

    Raises:
        VitrailError: no pair, one twice, or one that names a row that is not there.
    """
    pairs = np.asarray(truth, np.int64).reshape(-1, 2)
    if not len(pairs) or len(np.unique(pairs, axis=0)) != len(pairs):
        raise VitrailError(f"copy detection: {len(pairs)} true pairs; at least one is needed, and each only once")
    if (pairs < 0).any() or (pairs >= scores.shape).any():
        raise VitrailError(f"copy detection: a true pair names a row beyond {scores.shape} queries and references")
    if not np.isfinite(scores).all():
        raise VitrailError("copy detection: scores hold NaN or infinity")
    right = np.zeros(scores.shape, bool)
    right[pairs[:, 0], pairs[:, 1]] = True
    return average_precision(scores.ravel(), right.ravel())
