"""Edges of the copy graph: a block in memory, and parts on disk that a stopped search carries on from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

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
        ("similarity", pa.float32()),  # cosine of the exact descriptors
    ],
    metadata={"vitrail.table": "edges", "vitrail.version": "1"},
)


class Edges(NamedTuple):
    """A block of edges: rows ``a`` and ``b`` [E] int64 and their cosine [E] float32."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    similarity: NDArray[np.float32]

    def above(self, threshold: float) -> Edges:
        """Only the edges whose cosine is over ``threshold``."""
        return self.where(self.similarity > threshold)

    def where(self, keep: NDArray[np.bool_]) -> Edges:
        """Only the edges that ``keep`` [E] says."""
        return Edges(self.a[keep], self.b[keep], self.similarity[keep])

    def canonical(self) -> Edges:
        """Each pair once, the smaller row first, at its largest cosine; ordered by (a, b)."""
        low, high = np.minimum(self.a, self.b), np.maximum(self.a, self.b)
        order = np.lexsort((-self.similarity, high, low))
        low, high, similarity = low[order], high[order], self.similarity[order]
        first = np.ones(len(low), bool)
        first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
        return Edges(low[first], high[first], similarity[first])


def part_path(folder: Path, start: int, stop: int) -> Path:
    """Where the edges found from rows ``start`` to ``stop`` stand; they are complete when the file is there."""
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
                file = pq.ParquetFile(path)
            except (pa.ArrowInvalid, OSError) as fault:
                raise VitrailError(f"{path}: not a readable part of the edges ({fault}); run dedup again") from None
            if (file.schema_arrow.metadata or {}).get(b"vitrail.table") != b"edges":
                raise VitrailError(f"{path}: not a table of edges; run dedup again")
            for batch in file.iter_batches(1 << 20):
                yield Edges(*(batch.column(name).to_numpy() for name in EDGES.names))

    def table(self) -> pa.Table:
        """All edges as one table, for small sets and for checks."""
        return pa.concat_tables(pq.read_table(path) for path in self.parts)
