"""Union-find over a thousand million rows: one array of 4 bytes a row, in memory or in a memory-mapped file.

Memory, for N rows: 4 N bytes of parents (8 N from 2^32 rows), and some 20 MB while a block of edges is joined.
1.3e9 rows are 5.2 GB; with ``path`` they are a file, of which the system keeps in memory what fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 18  # edges, or rows, handled at a time: what lies near in the array stays in cache


class DisjointSet:
    """Rows 0 to ``count`` - 1, joined by whole blocks of edges at once.

    A root hangs below the smaller root it meets, so parents only decrease, no cycle can form, and a component's root
    is its smallest row whatever the order of the edges.
    """

    def __init__(self, count: int, path: Path | None = None) -> None:
        kind = np.dtype(np.uint32 if count <= 2**32 else np.int64)
        self._parent: NDArray[Any]
        if path is None or not count:
            self._parent = np.arange(count, dtype=kind)
        else:
            self._parent = np.memmap(path, kind, "w+", shape=(count,))
            for start in range(0, count, BLOCK):
                self._parent[start : start + BLOCK] = np.arange(start, min(start + BLOCK, count), dtype=kind)

    def union(self, a: NDArray[np.integer[Any]], b: NDArray[np.integer[Any]]) -> None:
        """Join row ``a[i]`` with row ``b[i]``, for every i."""
        for start in range(0, len(a), BLOCK):
            self._join(a[start : start + BLOCK], b[start : start + BLOCK])

    def _join(self, a: NDArray[np.integer[Any]], b: NDArray[np.integer[Any]]) -> None:
        parent = self._parent
        while True:
            a, b = self._find(a), self._find(b)
            apart = a != b
            if not apart.any():
                return
            a, b = a[apart], b[apart]
            high, low = np.maximum(a, b), np.minimum(a, b)
            # Two edges may pull one root: the smallest wins, and the loop comes back for the other.
            np.minimum.at(parent, high, low)

    def _find(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        parent = self._parent
        root = parent[rows]
        top = parent[root]
        left = np.flatnonzero(top != root)  # most are there after one step: only the others go on
        top = top[left]
        while len(left):
            root[left] = parent[rows[left]] = top  # each round shortens the way of every row asked about
            above = parent[top]
            on = above != top
            left, top = left[on], above[on]
        return np.asarray(root)

    def labels(self) -> NDArray[Any]:
        """The component of every row [count], uint32 (int64 from 2^32 rows): its smallest row. A view: do not write."""
        for part in self._blocks():
            # A parent is smaller than its row, so blocks in order find theirs flattened already or just above.
            part[:] = self._find(part)
        return self._parent

    def _blocks(self) -> Iterator[NDArray[Any]]:
        for start in range(0, len(self._parent), BLOCK):
            yield self._parent[start : start + BLOCK]
