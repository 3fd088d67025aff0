"""Edges of the copy graph: a block in memory, and parts on disk that a stopped search carries on from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.errors import VitrailError
from components.storage import atomic_file

EDGES = pa.schema(
    [
        ("a", pa.int64()),  # row of the pool; the smaller of the two
        ("b", pa.int64()),
        ("similarity", pa.float32()),  # cosine of the exact descriptors, the largest of the pair's views
        ("a_view", pa.int16()),  # the views that it is the cosine of (descriptors.views.views): 0 is the whole image,
        ("b_view", pa.int16()),  # and one of the two always is
    ],
    metadata={"vitrail.table": "edges", "vitrail.version": "2"},  # 2: views
)


class Edges(NamedTuple):
    """A block of edges, a column [E] each: the rows, their cosine, and the views that it was measured between."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    similarity: NDArray[np.float32]
    a_view: NDArray[np.int16]
    b_view: NDArray[np.int16]

    @staticmethod
    def of_wholes(a: NDArray[np.int64], b: NDArray[np.int64], similarity: NDArray[np.float32]) -> Edges:
        """Edges [E] between whole images."""
        zero = np.zeros(len(a), np.int16)
        return Edges(a, b, similarity, zero, zero)

    @staticmethod
    def joined(blocks: Sequence[Edges]) -> Edges:
        """The edges of all ``blocks``, of which there is at least one."""
        return Edges(*(np.concatenate(column) for column in zip(*blocks, strict=True)))

    def above(self, threshold: float) -> Edges:
        """Only the edges whose cosine is over ``threshold``."""
        return self.where(self.similarity > threshold)

    def where(self, keep: NDArray[Any]) -> Edges:
        """The edges that ``keep`` says: a mask [E], or numbers in the order wanted."""
        return Edges(*(column[keep] for column in self))

    def canonical(self) -> Edges:
        """Each pair once, the smaller row first, by its largest cosine; ordered by (a, b).

        Of equal cosines the one of the smaller views counts.
        """
        turned = self.a > self.b
        low, high = np.where(turned, self.b, self.a), np.where(turned, self.a, self.b)
        low_view, high_view = np.where(turned, self.b_view, self.a_view), np.where(turned, self.a_view, self.b_view)
        order = np.lexsort((high_view, low_view, -self.similarity, high, low))
        ordered = Edges(low, high, self.similarity, low_view, high_view).where(order)
        first = np.ones(len(low), bool)
        first[1:] = (ordered.a[1:] != ordered.a[:-1]) | (ordered.b[1:] != ordered.b[:-1])
        return ordered.where(first)


def part_path(folder: Path, start: int, stop: int) -> Path:
    """The file of the edges found from rows ``start`` to ``stop``; they are complete when the file is there."""
    return folder / f"edges-{start:012d}-{stop:012d}.parquet"


def write_part(path: Path, edges: Edges) -> Path:
    """Write ``edges`` to ``path``, whole or not at all."""
    table = pa.table([pa.array(column) for column in edges], schema=EDGES)
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd", use_dictionary=False)
    return path


class EdgeParts:
    """The parts in a folder, read one row group at a time, as often as asked: never all in memory."""

    def __init__(self, parts: Iterable[Path]) -> None:
        self.parts = list(parts)

    @staticmethod
    def of(folder: Path) -> EdgeParts:
        """All parts in ``folder``.

        Raises:
            VitrailError: there are none.
        """
        parts = sorted(folder.glob("edges-*.parquet"))
        if not parts:
            raise VitrailError(f"{folder}: no edges of the copy graph; run the dedup stage first")
        return EdgeParts(parts)

    def __iter__(self) -> Iterator[Edges]:
        for path in self.parts:
            try:
                file = pq.ParquetFile(path, pre_buffer=False)
            except (pa.ArrowInvalid, OSError) as fault:
                raise VitrailError(f"{path}: not a readable part of the edges ({fault}); run dedup again") from None
            found = file.schema_arrow.metadata or {}
            if any(found.get(name) != EDGES.metadata[name] for name in (b"vitrail.table", b"vitrail.version")):
                raise VitrailError(f"{path}: not a table of edges of this version; run dedup again")
            for batch in file.iter_batches(1 << 20):
                yield Edges(*(batch.column(name).to_numpy(zero_copy_only=False) for name in EDGES.names))

    def table(self) -> pa.Table:
        """All edges as one table, for small sets and for checks."""
        return pa.concat_tables(pq.read_table(path) for path in self.parts)
