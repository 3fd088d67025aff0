"""The files of one run's joins, each with a column ``row``, the number of a row of the pool; and how they are read."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
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
from components.tables.database import stream

BATCH = 1 << 14  # rows read at a time

_COLUMNS = {
    "row": pa.int64(), "component": pa.int64(), "kept": pa.int64(), "leak": pa.int64(), "other": pa.int64(),
    "reference": pa.int64(), "query": pa.int64(), "times": pa.int64(), "similarity": pa.float32(),
    "view": pa.int16(), "match_view": pa.int16(), "straight": pa.bool_(), "identical": pa.bool_(), "name": pa.string(),
    "place": pa.int64(),
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
        """row, name, place: the data sets that brought a row, and where each stands among them."""
        return self.folder / "brought.parquet"

    @property
    def found_in_order(self) -> Path:
        """:attr:`found`, by row."""
        return self.folder / "found-in-order.parquet"

    @property
    def brought_in_order(self) -> Path:
        """:attr:`brought`, by row and place."""
        return self.folder / "brought-in-order.parquet"

    @property
    def representatives(self) -> Path:
        """row, key of the kept row: the rows that are copies of it, by row."""
        return self.folder / "representatives.parquet"

    @property
    def matches(self) -> Path:
        """row, key of the other row, similarity, view, match_view: :attr:`deciding`, by row."""
        return self.folder / "matches.parquet"

    @property
    def decisions(self) -> Path:
        """tables.DECISIONS."""
        return self.folder / "decisions"

    @property
    def manifest(self) -> Path:
        """tables.MANIFEST."""
        return self.folder / "manifest"

    def best_ties(self, connection: Any) -> None:
        """Write :attr:`deciding`, by row: the straight edge, else the strongest, then the one to the smallest row."""
        query = f"""SELECT * FROM read_parquet('{self.ties}')
            ORDER BY "row", straight DESC, similarity DESC, other"""
        names = ("row", "other", "similarity", "view", "match_view")
        with ColumnWriter(self.deciding, names) as writer:
            for table in firsts(stream(connection, query), "row"):
                writer.write(**{name: table[name] for name in names})


def fresh_folder(path: Path) -> Path:
    """``path``, an empty folder."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


class ColumnWriter:
    """Appends columns of arrays to one Parquet file, which appears whole when the block ends, or not at all."""

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        self._file: AbstractContextManager[Any] = atomic_file(path)
        self._open: Any = None
        self._writer: pq.ParquetWriter | None = None
        self._columns = list(columns)  # of an empty file

    def write(self, **columns: NDArray[Any] | pa.Array) -> None:
        """Append rows; every call has the same columns, of equal length."""
        schema = pa.schema([(name, _COLUMNS.get(name, pa.float64())) for name in columns])
        arrays = [
            (column if isinstance(column, pa.Array) else pa.array(column)).cast(schema.field(name).type)
            for name, column in columns.items()
        ]
        self._writer = self._writer or pq.ParquetWriter(self._open, schema, compression="zstd")
        if len(arrays[0]):
            self._writer.write_table(pa.table(arrays, schema=schema))

    def __enter__(self) -> ColumnWriter:
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
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(BATCH, columns=list(columns)):
            yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns}


def firsts(blocks: Iterable[pa.RecordBatch], by: str) -> Iterator[pa.RecordBatch]:
    """Of ``blocks`` in the order of the numbers ``by``, the first row of each number."""
    last = -1
    for block in blocks:
        numbers = block[by].to_numpy()
        if len(numbers):
            yield block.filter(pa.array(np.r_[numbers[0] != last, numbers[1:] != numbers[:-1]]))
            last = int(numbers[-1])


# Without pre_buffer=False pyarrow keeps the compressed bytes of all row groups that it has read of a file.
class RowReader:
    """Reads a file that is in the order of its column ``row`` forwards, piece by piece; nothing where it is None."""

    def __init__(self, path: Path | None) -> None:
        self._file = pq.ParquetFile(path, pre_buffer=False) if path else None
        self._batches = self._file.iter_batches(BATCH) if self._file else iter(())
        self._held = (self._file.schema_arrow if self._file else pa.schema([("row", pa.int64())])).empty_table()
        self._ended = False

    @property
    def count(self) -> int:
        """The rows of the whole file."""
        return int(self._file.metadata.num_rows) if self._file else 0

    def upto(self, stop: int) -> pa.Table:
        """The rows before the number ``stop`` that were not given before."""
        while not self._ended and (not len(self._held) or self._held["row"][-1].as_py() < stop):
            batch = next(self._batches, None)
            self._ended = batch is None
            if batch is not None:
                table = pa.Table.from_batches([batch])
                # An empty slice would keep the whole batch that it is of.
                self._held = pa.concat_tables([self._held, table]) if len(self._held) else table
        cut = int(np.searchsorted(self._held["row"].to_numpy(), stop))
        found, self._held = self._held.slice(0, cut), self._held.slice(cut)
        return found

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


def at_rows(table: pa.Table, start: int, count: int) -> tuple[pa.Table, NDArray[np.int64]]:
    """``table``, and which of its rows is about each of ``count`` rows of the pool from ``start`` [count]; -1: none."""
    found = np.full(count, -1, np.int64)
    found[table["row"].to_numpy() - start] = np.arange(len(table))
    return table, found


def taken(table: pa.Table, name: str, which: NDArray[np.int64], missing: object) -> NDArray[Any]:
    """The column ``name`` of the rows ``which`` [n] of ``table``; ``missing`` where that is -1, or there is no column.

    A copy: to be written to.
    """
    values = table[name].to_numpy() if name in table.column_names else np.zeros(0)
    if not len(values):
        return np.full(len(which), missing, object if isinstance(missing, str) else None)
    there = which >= 0
    found = np.full(len(which), missing, object if isinstance(missing, str) else values.dtype)
    found[there] = values[which[there]]
    return found


def rows_between(path: Path, start: int, stop: int) -> pa.Table:
    """Rows ``start`` to ``stop`` of one file, of which only the row groups that hold them are read."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        groups: list[int] = []
        before = first = 0
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if before < stop and before + count > start:
                first = first if groups else before
                groups.append(group)
            before += count
        return file.read_row_groups(groups).slice(start - first, stop - start)
