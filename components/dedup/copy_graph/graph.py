"""The copy graph: edges between images whose descriptors are close, and its connected components.

The DINOv2 paper (appendix A): k = 64 nearest neighbours by cosine, edges above a threshold, connected components by a
scalable disjoint set, one image kept a component. Which one is not stated there; here ``graph.keep`` says by what.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.dedup.copy_graph.disjoint import DisjointSet
from components.dedup.copy_graph.edges import Edges
from components.neighbours import NeighbourParams, Neighbours

Keep = Literal["quality", "largest", "sharpest", "oldest"]
BLOCK = 1 << 13  # images whose neighbours are held in memory at a time
STRIDE = 1 << 16  # rows of an array of all images that are worked on at a time
REACH = 2048  # descriptors looked at for an image's neighbours, at most: FAISS' limit on a GPU


def neighbour_edges(
    descriptors: NDArray[Any], k: int, floor: float, params: NeighbourParams, *, block: int = 1 << 16
) -> Iterator[Edges]:
    """Stream the kNN graph's edges over ``floor``: ``k`` neighbours an image, the image itself excluded.

    ``descriptors`` [N, R, d]: the whole image, which is the query, then its other views, which are found too. A pair
    appears once a block, and may appear in two blocks; a set of one image, or smaller than ``k``, is searched as far
    as it goes.
    """
    count, each, dim = descriptors.shape
    index = Neighbours(descriptors.reshape(count * each, dim), params)
    for start in range(0, count, block):
        yield edges_of(descriptors, start, min(start + block, count), k, floor, index)


def edges_of(descriptors: NDArray[Any], start: int, stop: int, k: int, floor: float, index: Neighbours) -> Edges:
    """The edges over ``floor`` of rows ``start`` to ``stop``, from ``index`` over all views of all images.

    ``k`` counts images, whatever number of their views is found: where views use a list up, it is made longer, to
    :data:`REACH` at most.
    """
    count, each, _ = descriptors.shape
    found: list[Edges] = []
    for begin in range(start, stop, BLOCK):
        asking, reach = np.arange(begin, min(begin + BLOCK, stop)), min(k + each, count * each)
        most = min(count * each, max(REACH, reach))
        while len(asking):
            similarity, rows = index.search(descriptors[asking, 0], reach, floor)
            images = np.where(rows < 0, -1, rows // each)
            over = (similarity > floor) & (images != asking[:, None]) & (images >= 0)
            place = _different(np.where(over, images, -1))
            longer = (place[:, -1] < k) & (similarity[:, -1] > floor) & (reach < most)
            taken = over & (place <= k) & ~longer[:, None]
            own = np.broadcast_to(asking[:, None], images.shape)[taken]
            whole, view = np.zeros(len(own), np.int16), (rows[taken] % each).astype(np.int16)
            found.append(Edges(own, images[taken], similarity[taken], whole, view))
            asking, reach = asking[longer], min(2 * reach, most)
    return Edges.joined(found).canonical()


def _different(images: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many different images each row of ``images`` [n, m] names up to each place, -1 not counted."""
    order = np.argsort(images, axis=1, kind="stable")
    ordered = np.take_along_axis(images, order, 1)
    new = ordered >= 0
    new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    first = np.zeros(images.shape, np.int64)
    np.put_along_axis(first, order, new.astype(np.int64), 1)
    return np.cumsum(first, axis=1)


def components(
    count: int, blocks: Iterable[Edges], threshold: float, path: Path | None = None
) -> NDArray[np.integer[Any]]:
    """The connected component [count] of every row over edges above ``threshold``: its smallest row's number.

    Of 4 bytes a row (8 from 2^32 rows). ``path``: a file to keep them in, if they should not be in memory.
    """
    sets = DisjointSet(count, path)
    for edges in blocks:
        strong = edges.above(threshold)
        sets.union(strong.a, strong.b)
    return sets.labels()


def component_counts(labels: NDArray[np.integer[Any]]) -> NDArray[np.uint32]:
    """How many rows each component has [N], at the number of its smallest row; 0 elsewhere. 4 bytes a row."""
    counts = np.zeros(len(labels), np.uint32)
    for start in range(0, len(labels), STRIDE):
        np.add.at(counts, labels[start : start + STRIDE], 1)
    return counts


def size_histogram(counts: NDArray[np.uint32]) -> dict[str, int]:
    """How many components there are of size 1, 2, 3-4, 5-8, ... as ``{"1": n, "2": n, "3-4": n}``."""
    found = np.zeros(34, np.int64)
    for start in range(0, len(counts), STRIDE):
        sizes = counts[start : start + STRIDE]
        sizes = sizes[sizes > 0]
        found += np.bincount(np.ceil(np.log2(sizes)).astype(np.int64), minlength=len(found))
    last = int(np.flatnonzero(found).max(initial=-1))
    return {_span(power): int(found[power]) for power in range(last + 1)}


def _span(power: int) -> str:
    low, high = 2**power // 2 + 1, 2**power
    return str(high) if low >= high else f"{low}-{high}"
