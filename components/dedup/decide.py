"""What happens to every image of the pool, as arrays in and arrays out: the one place where dedup decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.dedup.graph import representatives
from components.dedup.reference import Touch
from components.dedup.retrieve import Retrieved

HELD_OUT = "held-out"  # copies a benchmark's held-out image, or is in one component with such a copy
IDENTICAL = "held-out-identical"  # has the very bytes of a benchmark's held-out image
SELF_DUPLICATE = "self-duplicate"
NOT_RETRIEVED = "not-retrieved"
NOT_SAMPLED = "not-sampled"  # balancing took others of its clusters
BALANCED = "balanced"  # selected by balancing
REASONS = (HELD_OUT, IDENTICAL, SELF_DUPLICATE, NOT_RETRIEVED, NOT_SAMPLED)


@dataclass(frozen=True)
class Copies:
    """The pool after self-dedup and relative dedup. All arrays [N]."""

    labels: NDArray[np.integer[Any]]  # component: its smallest row
    kept: NDArray[np.int64]  # the row kept for the component
    culprit: NDArray[np.int64]  # the row that touches a held-out image and condemns this one; -1: none
    survives: NDArray[np.bool_]  # representative of a component that was not dropped whole


def settle(
    labels: NDArray[np.integer[Any]], culprit: NDArray[np.int64], scores: NDArray[Any], digests: NDArray[Any]
) -> Copies:
    """Who survives, of components ``labels`` [N] and condemned rows ``culprit`` [N].

    A row that is condemned condemns its whole component; a component that survives keeps its representative.
    """
    whole = condemned(labels, culprit)
    kept = representatives(labels, scores, digests)
    return Copies(labels, kept, whole, (whole < 0) & (kept == np.arange(len(labels))))


def condemned(labels: NDArray[np.integer[Any]], culprit: NDArray[np.int64]) -> NDArray[np.int64]:
    """``culprit`` [N] (-1: none) with every other row of a component ``labels`` [N] that holds a condemned one."""
    first = np.full(len(labels), len(labels), np.int64)
    np.minimum.at(first, labels[culprit >= 0], culprit[culprit >= 0])
    others = (culprit < 0) & (first[labels] < len(labels))
    return np.where(others, first[labels], culprit)


def decisions(
    keys: list[str],
    descriptors: NDArray[Any],
    copies: Copies,
    touch: Touch,
    held_out: list[str],
    retrieved: Retrieved | None,
    queries: list[str],
    reasons: list[str],
    sampled: NDArray[np.bool_] | None = None,
    identical: NDArray[np.bool_] | None = None,
) -> list[dict[str, object]]:
    """Rows of ``tables.DECISIONS``, one a row of the pool and in its order.

    ``retrieved`` is over all rows of the pool (zero where not found), ``queries`` names its query images and
    ``reasons`` what a row that each brought is selected for; None: everything that survives is selected, as "pool",
    or those of ``sampled`` [N] where balancing chose. ``identical`` [N] are rows with a held-out image's bytes.
    """
    rows: list[dict[str, object]] = []
    for row, key in enumerate(keys):
        culprit, kept = int(copies.culprit[row]), int(copies.kept[row])
        status, match, similarity, representative = "dropped", "", float("nan"), keys[kept]
        if culprit >= 0:
            reason, representative = HELD_OUT if identical is None or not identical[row] else IDENTICAL, ""
            if touch.touched[row]:
                match, similarity = held_out[touch.reference[row]], float(touch.similarity[row])
            else:
                match, similarity = keys[culprit], _cosine(descriptors, row, culprit)
        elif kept != row:
            reason, match, similarity = SELF_DUPLICATE, keys[kept], _cosine(descriptors, row, kept)
        elif sampled is not None:
            status, reason = ("selected", BALANCED) if sampled[row] else ("dropped", NOT_SAMPLED)
        elif retrieved is None:
            status, reason = "selected", "pool"
        elif retrieved.times[row]:
            query = int(retrieved.query[row])
            status, reason = "selected", reasons[query]
            match, similarity = queries[query], float(retrieved.similarity[row])
        else:
            reason = NOT_RETRIEVED
        rows.append(
            {
                "key": key,
                "status": status,
                "reason": reason,
                "component": int(copies.labels[row]),
                "representative": representative,
                "match": match,
                "similarity": similarity,
            }
        )
    return rows


def _cosine(descriptors: NDArray[Any], a: int, b: int) -> float:
    return float(np.asarray(descriptors[a], np.float32) @ np.asarray(descriptors[b], np.float32))
