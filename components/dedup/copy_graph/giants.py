"""Components that chain: a giant one is cut at higher thresholds until its parts are of a plausible size.

Copies of copies chain: pictures with the same text, or of the same landmark, are SSCD's stated failures, and at the
paper's recall-oriented thresholds a few wrong edges make one component of thousands of different images. The paper
does not say what was done about it. Here the edges inside a giant alone are looked at again, step by step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.dedup.copy_graph.disjoint import DisjointSet
from components.dedup.copy_graph.edges import Edges
from components.dedup.copy_graph.graph import STRIDE, component_counts
from components.params import Strict


class GiantParams(Strict):
    """``graph.giants``: what is done with components of more than ``over`` images."""

    over: int = Field(1000, ge=2, le=10**12)  # images
    step: float = Field(0.05, gt=0, lt=1)  # cosine by which the threshold is raised, again and again
    ceiling: float = Field(0.95, gt=0, le=1)  # no higher threshold; what is giant still is left, and reported


class Cut(NamedTuple):
    """What became of one giant component."""

    component: int  # its smallest row
    size: int
    parts: int  # components that it became; 1: it was left as it was
    largest: int  # of those
    threshold: float  # the last one applied to any part


def cut_giants(
    labels: NDArray[np.integer[Any]], edges: Iterable[Edges], threshold: float, params: GiantParams
) -> tuple[NDArray[np.integer[Any]], list[Cut]]:
    """``labels`` [N] with giants cut, and a line for each giant; ``edges`` is read once for each step taken.

    A component that is small enough stays as it is, whatever happens to others.
    """
    found = component_counts(labels)
    giants = np.flatnonzero(found > params.over)
    if not len(giants):
        return labels, []
    labels = np.array(labels)
    spans = range(0, len(labels), STRIDE)
    inside = [start + np.flatnonzero(found[labels[start : start + STRIDE]] > params.over) for start in spans]
    rows = np.concatenate(inside)  # all that is looked at from here on
    began_as = labels[rows]
    last = dict.fromkeys(giants.tolist(), threshold)
    local, at = began_as.copy(), threshold
    while at + params.step <= params.ceiling + 1e-9:
        _, inverse, sizes = np.unique(local, return_inverse=True, return_counts=True)
        too_large = sizes[inverse] > params.over
        if not too_large.any():
            break
        at += params.step
        active = rows[too_large]
        sets = DisjointSet(len(active))
        for block in edges:
            strong = block.above(at)
            a, b = _place(active, strong.a), _place(active, strong.b)
            both = (a >= 0) & (b >= 0)
            sets.union(a[both], b[both])
        local[too_large] = active[sets.labels()]
        for name in np.unique(began_as[too_large]).tolist():
            last[name] = at
    labels[rows] = local
    cuts = []
    for giant in giants.tolist():
        _, sizes = np.unique(local[began_as == giant], return_counts=True)
        cuts.append(Cut(giant, int(found[giant]), len(sizes), int(sizes.max()), round(last[giant], 4)))
    return labels, cuts


def _place(rows: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each of ``wanted`` in the sorted ``rows``; -1 if it is not there."""
    place = np.searchsorted(rows, wanted)
    inside = np.minimum(place, len(rows) - 1)
    return np.where(rows[inside] == wanted, inside, -1)
