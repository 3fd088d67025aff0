"""The copy graph: edges between images whose descriptors are close, and its connected components.

The DINOv2 paper (appendix A): k = 64 nearest neighbours by cosine, edges above a threshold, connected components by a
scalable disjoint set, one image kept a component. Which one is not stated there; here it is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.neighbours import NeighbourParams, Neighbours


class Edges(NamedTuple):
    """A block of edges: rows ``a`` and ``b`` [E] int64 and their cosine [E] float32."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    similarity: NDArray[np.float32]

    def above(self, threshold: float) -> Edges:
        """Only the edges whose cosine is over ``threshold``."""
        keep = self.similarity > threshold
        return Edges(self.a[keep], self.b[keep], self.similarity[keep])


class DisjointSet:
    """Union-find over ``count`` rows in one int32 array (int64 above 2^31 rows), for whole blocks of edges at once.

    A root hangs below the smaller root it meets, so parents only decrease, no cycle can form, and a component's root
    is its smallest row whatever the order of the edges.
    """

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)

    def union(self, a: NDArray[np.integer[Any]], b: NDArray[np.integer[Any]]) -> None:
        """Join row ``a[i]`` with row ``b[i]``, for every i."""
        parent = self._parent
        while True:
            root_a, root_b = self._find(a), self._find(b)
            apart = root_a != root_b
            if not apart.any():
                return
            a, b = root_a[apart], root_b[apart]
            # Two edges may pull one root: the smallest wins, and the loop comes back for the other.
            np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))

    def _find(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
        parent = self._parent
        while True:
            above: NDArray[np.integer[Any]] = parent[rows]
            top = parent[above]
            if np.array_equal(above, top):
                return above
            parent[rows] = top  # path halving: the depth of every row asked about halves each round

    def labels(self) -> NDArray[np.int64]:
        """The component of every row [count]: its smallest row."""
        parent = self._parent
        while True:
            top = parent[parent]
            if np.array_equal(top, parent):
                return parent.astype(np.int64)
            parent = self._parent = top


def neighbour_edges(
    descriptors: NDArray[Any], k: int, floor: float, params: NeighbourParams, *, block: int = 1 << 16
) -> Iterator[Edges]:
    """Stream the kNN graph's edges over ``floor``: ``k`` neighbours an image, the image itself excluded.

    ``descriptors`` [N, R, d]: the whole image, which is the query, then its windows, which are found too. Both
    directions, and an edge for each of an image's windows, may appear; a set of one image, or smaller than ``k``, is
    searched as far as it goes.
    """
    count, each, dim = descriptors.shape
    reach = min(k + each, count * each)
    index = Neighbours(descriptors.reshape(count * each, dim), params)
    for start in range(0, count, block):
        similarity, found = index.search(descriptors[start : start + block, 0], reach)
        rows = np.where(found < 0, -1, found // each)
        own = np.arange(start, start + len(rows))[:, None]
        keep = (similarity > floor) & (rows != own) & (rows >= 0)
        yield Edges(np.broadcast_to(own, rows.shape)[keep], rows[keep], similarity[keep])


def components(count: int, blocks: Iterable[Edges], threshold: float) -> NDArray[np.int64]:
    """The connected component [count] of every row over edges above ``threshold``: its smallest row's number."""
    sets = DisjointSet(count)
    for edges in blocks:
        strong = edges.above(threshold)
        sets.union(strong.a, strong.b)
    return sets.labels()


def representatives(
    labels: NDArray[np.int64], areas: NDArray[np.integer[Any]], digests: NDArray[Any]
) -> NDArray[np.int64]:
    """For every row [N] the row kept for its component: the largest area, then the smallest content hash."""
    order = np.lexsort((digests, -areas.astype(np.int64), labels))
    first = np.ones(len(order), bool)
    first[1:] = labels[order][1:] != labels[order][:-1]
    kept = np.empty(len(labels), np.int64)
    kept[order] = order[first][np.cumsum(first) - 1]
    return kept


def component_sizes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sizes of all components, largest first."""
    sizes: NDArray[np.int64] = np.sort(np.bincount(labels, minlength=1))[::-1]
    return sizes[sizes > 0].astype(np.int64)


def size_histogram(labels: NDArray[np.int64]) -> dict[str, int]:
    """How many components there are of size 1, 2, 3-4, 5-8, ... as ``{"1": n, "2": n, "3-4": n}``."""
    sizes = component_sizes(labels)
    histogram: dict[str, int] = {}
    low = high = 1
    while len(sizes) and low <= sizes[0]:
        histogram[str(low) if low == high else f"{low}-{high}"] = int(((sizes >= low) & (sizes <= high)).sum())
        low, high = high + 1, high * 2
    return histogram
