"""What happens to every image of the pool, as arrays in and arrays out: the one place where dedup decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.dedup.edges import Edges
from components.dedup.graph import representatives
from components.dedup.reference import LeakMatches
from components.dedup.retrieve import Retrieved

HELD_OUT = "held-out"  # copies a benchmark's held-out image, or is in one component with such a copy
IDENTICAL = "held-out-identical"  # has the very bytes of a benchmark's held-out image
SELF_DUPLICATE = "self-duplicate"
NOT_RETRIEVED = "not-retrieved"
NOT_SAMPLED = "not-sampled"  # balancing took others of its clusters
BALANCED = "balanced"  # selected by balancing
REASONS = (HELD_OUT, IDENTICAL, SELF_DUPLICATE, NOT_RETRIEVED, NOT_SAMPLED)


@dataclass(frozen=True)
class Resolved:
    """The pool after self-dedup and relative dedup. All arrays [N]."""

    labels: NDArray[np.integer[Any]]  # component: its smallest row
    representative: NDArray[np.int64]  # the row kept for the component
    leak: NDArray[np.int64]  # the row that copies a held-out image, and for which this one goes too; -1: none
    survives: NDArray[np.bool_]  # representative of a component that was not dropped whole


def resolve(
    labels: NDArray[np.integer[Any]], leak: NDArray[np.int64], scores: NDArray[Any], digests: NDArray[Any]
) -> Resolved:
    """Who survives, of components ``labels`` [N] and rows that leak or are tied to one that does, ``leak`` [N].

    Such a row takes its whole component with it; a component that survives keeps its representative.
    """
    whole = spread_leaks(labels, leak)
    kept = representatives(labels, scores, digests)
    return Resolved(labels, kept, whole, (whole < 0) & (kept == np.arange(len(labels))))


def spread_leaks(labels: NDArray[np.integer[Any]], leak: NDArray[np.int64]) -> NDArray[np.int64]:
    """``leak`` [N] (-1: none) with every other row of a component ``labels`` [N] that holds one with a leak."""
    first = np.full(len(labels), len(labels), np.int64)
    np.minimum.at(first, labels[leak >= 0], leak[leak >= 0])
    others = (leak < 0) & (first[labels] < len(labels))
    return np.where(others, first[labels], leak)


class DecidingEdges(NamedTuple):
    """Per row of the pool [N]: the edge of the copy graph that it was dropped by; -1 where none was."""

    other: NDArray[np.int64]  # row at its other end
    similarity: NDArray[np.float32]  # NaN where there is none
    view: NDArray[np.int16]  # of this row, that the similarity is of
    other_view: NDArray[np.int16]  # of the other


def deciding_edges(
    resolved: Resolved, tied: NDArray[np.integer[Any]], edges: Iterable[Edges], at_self: float, at_tied: float
) -> DecidingEdges:
    """For each row that goes as a copy, the edge that ties it; ``edges`` are read once.

    That is the edge to the row that it goes for (the representative, or the one that leaks) where there is one, else
    its strongest edge within its component, by which it hangs on to that row through others. Components are tied over
    the cosine ``at_self``, and those by which leaks spread, ``tied`` [N], over ``at_tied``.
    """
    count = len(resolved.labels)
    found = DecidingEdges(
        np.full(count, -1),
        np.full(count, -np.inf, np.float32),
        np.full(count, -1, np.int16),
        np.full(count, -1, np.int16),
    )
    target = np.where(resolved.leak >= 0, resolved.leak, resolved.representative)
    direct = np.zeros(count, bool)
    for block in edges:
        for own, other, view, other_view in (
            (block.a, block.b, block.a_view, block.b_view),
            (block.b, block.a, block.b_view, block.a_view),
        ):
            within = (resolved.labels[own] == resolved.labels[other]) & (block.similarity > at_self)
            within |= (resolved.leak[own] >= 0) & (tied[own] == tied[other]) & (block.similarity > at_tied)
            use = np.flatnonzero(within & (target[own] != own))
            use = use[np.lexsort((-other[use], block.similarity[use], target[own[use]] == other[use], own[use]))]
            last = np.ones(len(use), bool)
            last[:-1] = own[use][1:] != own[use][:-1]
            use = use[last]  # the best of this block for each row
            rows, straight = own[use], target[own[use]] == other[use]
            close = block.similarity[use]
            equal = (close == found.similarity[rows]) & (other[use] < found.other[rows])
            better = np.where(
                straight == direct[rows], (close > found.similarity[rows]) | equal, straight & ~direct[rows]
            )
            rows, use = rows[better], use[better]
            found.other[rows], found.similarity[rows] = other[use], block.similarity[use]
            found.view[rows], found.other_view[rows] = view[use], other_view[use]
            direct[rows] = straight[better]
    found.similarity[found.other < 0] = np.nan
    return found


@dataclass(frozen=True)
class Selection:
    """What chooses among the rows that survive: queries, an even sample, or neither, when all are selected."""

    retrieved: Retrieved | None = None  # over all rows of the pool, zero where not found
    queries: Sequence[str] = ()  # keys of the query images that `retrieved` numbers
    reasons: Sequence[str] = ()  # what a row that each brought is selected for
    sampled: NDArray[np.bool_] | None = None  # [N], those that balancing chose


def decisions(
    keys: Sequence[str],
    resolved: Resolved,
    leaks: LeakMatches,
    held_out: Sequence[str],
    deciding: DecidingEdges,
    selection: Selection,
) -> list[dict[str, object]]:
    """Rows of ``tables.DECISIONS``, one a row of the pool, in its order; ``held_out``: the held-out images' keys."""
    rows: list[dict[str, object]] = []
    retrieved = selection.retrieved
    for row, key in enumerate(keys):
        kept = int(resolved.representative[row])
        status, representative = "dropped", keys[kept]
        match, similarity, view, match_view = "", float("nan"), -1, -1
        if resolved.leak[row] >= 0 or kept != row:
            reason = HELD_OUT if resolved.leak[row] >= 0 else SELF_DUPLICATE
            if reason == HELD_OUT:
                reason, representative = IDENTICAL if leaks.identical[row] else HELD_OUT, ""
            if leaks.leaks[row]:
                match, similarity = held_out[leaks.reference[row]], float(leaks.similarity[row])
                view, match_view = int(leaks.view[row]), int(leaks.match_view[row])
            else:
                match, similarity = keys[deciding.other[row]], float(deciding.similarity[row])
                view, match_view = int(deciding.view[row]), int(deciding.other_view[row])
        elif selection.sampled is not None:
            status, reason = ("selected", BALANCED) if selection.sampled[row] else ("dropped", NOT_SAMPLED)
        elif retrieved is None:
            status, reason = "selected", "pool"
        elif retrieved.times[row]:
            query = int(retrieved.query[row])
            status, reason = "selected", selection.reasons[query]
            match, similarity = selection.queries[query], float(retrieved.similarity[row])
            view, match_view = (0, 0) if match else (-1, -1)
        else:
            reason = NOT_RETRIEVED
        rows.append(
            {
                "key": key,
                "status": status,
                "reason": reason,
                "component": int(resolved.labels[row]),
                "representative": representative,
                "match": match,
                "similarity": similarity,
                "view": view,
                "match_view": match_view,
            }
        )
    return rows
