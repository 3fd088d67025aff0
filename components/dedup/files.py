"""The files of one run's joins, each with a column ``row``, the number of a row of the pool; and how they are read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.storage import atomic_file
from components.tables.database import write_file

BATCH = 1 << 16  # rows read at a time

_COLUMNS = {
    "row": pa.int64(), "component": pa.int64(), "kept": pa.int64(), "leak": pa.int64(), "other": pa.int64(),
    "reference": pa.int64(), "query": pa.int64(), "times": pa.int64(), "similarity": pa.float32(),
    "view": pa.int16(), "match_view": pa.int16(), "straight": pa.bool_(), "identical": pa.bool_(), "name": pa.string(),
}  # fmt: skip


@dataclass(frozen=True)
class JoinFiles:
    """Where each stands, below ``folder``."""

    folder: Path

    @property
    def rows(self) -> Path:
        """row, key, shard, offset, length, width, height, source, source_offset, stored_sha256: every row."""
        return self.folder / "rows.parquet"

    @property
    def members(self) -> Path:
        """row, component: the rows of components of two and more."""
        return self.folder / "members.parquet"

    @property
    def measured(self) -> Path:
        """row, field0, ...: what ``graph.keep`` measured of them."""
        return self.folder / "measured.parquet"

    @property
    def leaks(self) -> Path:
        """row, reference, similarity, view, match_view, identical: the rows that copy a held-out image."""
        return self.folder / "leaks.parquet"

    @property
    def to_held_out(self) -> Path:
        """The cosine of every row to its nearest held-out image, fp32 [N]; -inf where nothing is held out."""
        return self.folder / "to-held-out.npy"

    @property
    def state(self) -> Path:
        """row, component, kept (row), leak (row, or -1): every row."""
        return self.folder / "state.parquet"

    @property
    def ties(self) -> Path:
        """row, other, similarity, view, match_view, straight: ends of edges that tie rows that go."""
        return self.folder / "ties.parquet"

    @property
    def deciding(self) -> Path:
        """The same, the one that decided for each row."""
        return self.folder / "deciding.parquet"

    @property
    def found(self) -> Path:
        """row, times, query, similarity: what was retrieved; or row alone: what was sampled."""
        return self.folder / "found.parquet"

    @property
    def brought(self) -> Path:
        """row, name: the data sets that brought a row."""
        return self.folder / "brought.parquet"

    @property
    def decided(self) -> Path:
        """row and the columns of tables.DECISIONS: every row, in no order."""
        return self.folder / "decided.parquet"

    def best_ties(self, connection: Any) -> None:
        """Write :attr:`deciding`: the straight edge, else the strongest, then the one to the smallest row."""
        query = f"""SELECT * EXCLUDE (place, straight) FROM (
            SELECT *, row_number() OVER (PARTITION BY "row" ORDER BY straight DESC, similarity DESC, other) AS place
            FROM read_parquet('{self.ties}')) WHERE place = 1"""
        write_file(connection, query, {}, self.deciding)


def fresh_folder(path: Path) -> Path:
    """``path``, an empty folder."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


class RowWriter:
    """Appends columns of arrays to one Parquet file, which appears whole when the block ends, or not at all."""

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        self._file: AbstractContextManager[Any] = atomic_file(path)
        self._open: Any = None
        self._writer: pq.ParquetWriter | None = None
        self._columns = list(columns)  # of an empty file

    def write(self, **columns: NDArray[Any] | pa.Array) -> None:
        """Append rows; every call has the same columns, of equal length."""
        schema = pa.schema([(name, _COLUMNS.get(name, pa.float64())) for name in columns])
        arrays = [pa.array(column).cast(schema.field(name).type) for name, column in columns.items()]
        self._writer = self._writer or pq.ParquetWriter(self._open, schema, compression="zstd")
        if len(arrays[0]):
            self._writer.write_table(pa.table(arrays, schema=schema))

    def __enter__(self) -> RowWriter:
        self._open = self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._writer is None:
            self.write(**{name: np.zeros(0, np.int64) for name in self._columns or ["row"]})
        if self._writer is not None:
            self._writer.close()
        self._file.__exit__(kind, fault, trace)


def batches(path: Path, columns: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """Blocks of the ``columns`` of one file as arrays."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH, columns=list(columns)):
            yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns}


def rows_between(path: Path, start: int, stop: int) -> pa.Table:
    """Rows ``start`` to ``stop`` of one file, of which only the row groups that hold them are read."""
    with pq.ParquetFile(path) as file:
        groups, before, first = [], 0, 0
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if before < stop and before + count > start:
                first = first if groups else before
                groups.append(group)
            before += count
        return file.read_row_groups(groups).slice(start - first, stop - start)
