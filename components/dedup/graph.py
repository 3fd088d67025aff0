"""The copy graph: edges between images whose descriptors are close, and its connected components.

The DINOv2 paper (appendix A): k = 64 nearest neighbours by cosine, edges above a threshold, connected components by a
scalable disjoint set, one image kept a component. Which one is not stated there; here it is deterministic, and
:func:`representatives` says by what.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.dedup.disjoint import DisjointSet
from components.dedup.edges import Edges
from components.neighbours import NeighbourParams, Neighbours

Keep = Literal["largest", "sharpest", "oldest"]


def neighbour_edges(
    descriptors: NDArray[Any], k: int, floor: float, params: NeighbourParams, *, block: int = 1 << 16
) -> Iterator[Edges]:
    """Stream the kNN graph's edges over ``floor``: ``k`` neighbours an image, the image itself excluded.

    ``descriptors`` [N, R, d]: the whole image, which is the query, then its windows, which are found too. A pair
    appears once a block, and may appear in two blocks; a set of one image, or smaller than ``k``, is searched as far
    as it goes.
    """
    count, each, dim = descriptors.shape
    index = Neighbours(descriptors.reshape(count * each, dim), params)
    for start in range(0, count, block):
        yield edges_of(descriptors, start, min(start + block, count), k, floor, index)


def edges_of(descriptors: NDArray[Any], start: int, stop: int, k: int, floor: float, index: Neighbours) -> Edges:
    """The edges over ``floor`` of rows ``start`` to ``stop``, from ``index`` over all rows and windows."""
    count, each, _ = descriptors.shape
    similarity, found = index.search(descriptors[start:stop, 0], min(k + each, count * each), floor)
    rows = np.where(found < 0, -1, found // each)
    own = np.arange(start, stop)[:, None]
    keep = (similarity > floor) & (rows != own) & (rows >= 0)
    return Edges(np.broadcast_to(own, rows.shape)[keep], rows[keep], similarity[keep]).canonical()


def components(count: int, blocks: Iterable[Edges], threshold: float, path: Path | None = None) -> NDArray[np.int64]:
    """The connected component [count] of every row over edges above ``threshold``: its smallest row's number.

    ``path``: a file to keep the disjoint set in, where it should not stand in memory.
    """
    sets = DisjointSet(count, path)
    for edges in blocks:
        strong = edges.above(threshold)
        sets.union(strong.a, strong.b)
    return sets.labels().astype(np.int64)


def representatives(labels: NDArray[np.int64], scores: NDArray[Any], digests: NDArray[Any]) -> NDArray[np.int64]:
    """For every row [N] the row kept for its component: the largest score, then the smallest content hash.

    ``scores`` [N]: the area (``keep: largest``), the sharpness, or minus the place in the order of the crawl (oldest).
    """
    order = np.lexsort((digests, -scores, labels))
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
