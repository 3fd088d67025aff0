"""The table of image links that every kind of source is brought to, written row by row in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.storage import atomic_file
from components.tables.parts import PartWriter
from components.tables.schemas import LINKS

_BATCH = 8192  # rows in memory at a time


def first_position(number: int) -> int:
    """The position of the first link of file ``number``: files count 2^40 links at most."""
    return number << 40


def storable(text: str) -> str:
    """``text`` with "?" for lone surrogates, which JSON can name and no UTF-8 column can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class RowWriter:
    """Writes rows to a Parquet file, which appears whole when the block ends, or not at all."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._schema, self._held = schema, list[Mapping[str, object]]()
        self._path, self._stack = path, contextlib.ExitStack()
        self._write: Callable[[pa.Table], object]

    def add(self, row: Mapping[str, object]) -> None:
        """Append ``row``."""
        self._held.append(row)
        self.rows += 1
        if len(self._held) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        self._write(pa.Table.from_pylist(self._held, schema=self._schema))
        self._held.clear()

    def _begin(self) -> Callable[[pa.Table], object]:
        """Open what is written; the stack closes it."""
        file = self._stack.enter_context(atomic_file(self._path))
        writer: Any = self._stack.enter_context(pq.ParquetWriter(file, self._schema))
        write: Callable[[pa.Table], object] = writer.write_table
        return write

    def __enter__(self) -> RowWriter:
        self._write = self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        except BaseException as late:
            self._stack.__exit__(type(late), late, late.__traceback__)
            raise
        self._stack.__exit__(kind, fault, trace)


class PartRowWriter(RowWriter):
    """The same for a table in parts (:mod:`components.tables.parts`): ``path`` is its folder."""

    def _begin(self) -> Callable[[pa.Table], object]:
        return self._stack.enter_context(PartWriter(self._path, self._schema)).write


def iter_rows(path: Path) -> Iterator[dict[str, object]]:
    """Rows of a Parquet file, a batch in memory at a time."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(_BATCH):
            yield from batch.to_pylist()


def link_batches(tables: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """All rows of ``tables`` (:data:`LINKS`), in their order, a batch in memory at a time."""
    for table in tables:
        with pq.ParquetFile(table, pre_buffer=False) as part:
            for batch in part.iter_batches(16 * _BATCH, columns=LINKS.names):
                yield batch.select(LINKS.names)
