"""Where the bytes of images are: tables of places, whose row groups are the work items of the passes over images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.storage import atomic_file
from components.web.sources.kinds import SourceKind

PLACES = pa.schema(
    [("key", pa.string()), ("file", pa.binary()), ("offset", pa.int64()), ("length", pa.int64()),
     ("kind", pa.string()), ("format", pa.string()), ("sha256", pa.string()), ("row", pa.int64())]
)  # fmt: skip  # file: os.fsencode, for a name need not be UTF-8


@dataclass(frozen=True)
class Place:
    """Where the bytes of one image are: a WARC record, a tar's member, or a whole file (offset -1)."""

    key: str
    file: str
    offset: int
    length: int
    kind: SourceKind = "images"
    format: str = ""  # known once it was decoded, as the next
    sha256: str = ""
    row: int = -1  # of the index


@dataclass(frozen=True)
class Chunk:
    """One work item's places: a row group of a table of places. They are read where they are worked on."""

    path: Path
    group: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Place]:
        with pq.ParquetFile(self.path) as file:
            for row in file.read_row_group(self.group).to_pylist():
                yield place_of(row)


def place_of(row: dict[str, Any]) -> Place:
    """A row of :data:`PLACES`."""
    return Place(**row | {"file": os.fsdecode(row["file"])})


def write_places(path: Path, places: pa.Table, chunk: int) -> None:
    """Write ``places`` (:data:`PLACES`) in row groups of ``chunk`` places."""
    with atomic_file(path) as file:
        pq.write_table(places.select(PLACES.names).cast(PLACES), file, row_group_size=chunk)


def chunks(path: Path, count: int, chunk: int) -> list[Chunk]:
    """The work items of the table of ``count`` places at ``path``, written by :func:`write_places` with ``chunk``."""
    return [Chunk(path, number, min(chunk, count - start)) for number, start in enumerate(range(0, count, chunk))]


def spread(found: pa.Table, first: int, count: int) -> dict[str, Any]:
    """The columns of ``found`` for rows ``first`` to ``first + count``: null where it has no such row.

    ``found`` has a column "row", each value once.
    """
    at = np.full(count, -1, np.int64)
    at[found["row"].to_numpy() - first] = np.arange(len(found))
    taken = found.take(pa.array(at, mask=at < 0))
    return {name: taken[name].combine_chunks() for name in found.column_names}


def read_rows(path: Path, first: int, count: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows ``first`` to ``first + count`` of a file that is sorted by its column "row"."""
    import pyarrow.compute as pc

    only = (pc.field("row") >= first) & (pc.field("row") < first + count)
    return pq.read_table(path, columns=list(columns) if columns else None, filters=only)
