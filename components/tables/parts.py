"""A table as a folder of Parquet parts: written part by part, whole or not at all, and read part by part.

``part-00002-of-00005.parquet`` is the third of five. A reader of one table may also be given a single Parquet file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import VitrailError
from components.storage import atomic_dir, atomic_file
from components.tables.schemas import PARQUET_FAULTS, said

PART_ROWS = 65_536  # rows a part, unless its writer says otherwise: an index part is about 40 MB in memory
GROUP_ROWS = 16_384  # rows a row group: the least that is read
_NAME = re.compile(r"part-(\d{5,})-of-(\d{5,})\.parquet")


def part_name(number: int, count: int) -> str:
    """The name of part ``number`` (from 0) of ``count``."""
    return f"part-{number:05d}-of-{count:05d}.parquet"


def parts(path: Path, schema: pa.Schema) -> list[Path]:
    """The files of the table at ``path`` (a folder of parts, or one Parquet file), in order.

    Raises:
        VitrailError: not there, or a part is missing. What is inside the files is checked where they are read.
    """
    name, again = said(schema, "table"), _again(schema)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise VitrailError(f"{path}: the {name} is not there; run the {said(schema, 'stage')} stage first")
    found = {int(match[1]): (int(match[2]), match[0]) for file in os.listdir(path) if (match := _NAME.fullmatch(file))}
    counts = {count for count, _ in found.values()}
    if len(counts) > 1:
        raise VitrailError(f"{path}: parts of two versions of the {name} are mixed; {again}")
    count = counts.pop() if counts else 0
    if missing := [number for number in range(count) if number not in found]:
        raise VitrailError(f"{path / part_name(missing[0], count)}: this part of the {name} is missing; {again}")
    if not count or len(found) != count:
        raise VitrailError(f"{path}: no parts of the {name} in this folder; {again}")
    return [path / found[number][1] for number in range(count)]


def opened(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    """One part, checked: the same table, the same version, every column. Close it.

    Raises:
        VitrailError: the part is missing, cut short, damaged, of another table or of another version.
    """
    name, again = said(schema, "table"), _again(schema)
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # or it would keep all compressed bytes that it has read
    except FileNotFoundError:
        raise VitrailError(f"{path}: the {name} is not there; run the {said(schema, 'stage')} stage first") from None
    except PARQUET_FAULTS as fault:
        words = " ".join(str(fault).split())[:120]
        raise VitrailError(f"{path}: not a readable {name}, cut short or damaged ({words}); {again}") from None
    found = file.schema_arrow
    problem = ""
    if said(found, "table") != name:
        problem = f"expected a Vitrail {name} table, found {said(found, 'table') or 'none'!r}"
    elif said(found, "version") != said(schema, "version"):
        problem = f"{name} version {said(found, 'version')!r}, this code reads {said(schema, 'version')!r}"
    elif missing := set(schema.names) - set(found.names):
        problem = f"a damaged {name}, without column {sorted(missing)[0]!r}"
    if problem:
        file.close()
        raise VitrailError(f"{path}: {problem}; {again}")
    return file


def sources(path: Path, schema: pa.Schema) -> list[str]:
    """The files of a table for ``read_parquet`` of DuckDB; each was opened and checked."""
    files = parts(path, schema)
    for file in files:
        opened(file, schema).close()
    return [str(file) for file in files]


def part_rows(path: Path, schema: pa.Schema) -> list[int]:
    """How many rows each part has, from the parts' footers."""
    counts = []
    for file in parts(path, schema):
        with opened(file, schema) as part:
            counts.append(int(part.metadata.num_rows))
    return counts


def iter_batches(
    path: Path, schema: pa.Schema, columns: Sequence[str] | None = None, rows: int = GROUP_ROWS
) -> Iterator[pa.RecordBatch]:
    """Batches of at most ``rows`` rows of a table, in order; one batch is in memory at a time.

    Raises:
        VitrailError: as :func:`parts` and :func:`opened`, for a part when it is reached.
    """
    names = list(columns or schema.names)
    for path_of_part in parts(path, schema):
        with opened(path_of_part, schema) as part:
            batches = part.iter_batches(rows, columns=names)
            while True:
                try:
                    batch = next(batches, None)
                except PARQUET_FAULTS as fault:
                    raise _damaged(path_of_part, schema, fault) from None
                if batch is None:
                    break
                yield batch.select(names)


def read_table(
    path: Path, schema: pa.Schema, only: pc.Expression | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """A table, or the rows ``only`` and the ``columns`` of it, in memory: for what is known to be small.

    Raises:
        VitrailError: as :func:`parts` and :func:`opened`.
    """
    names = list(columns or schema.names)
    if only is not None:
        found = list(iter_matches(path, schema, only, names))
    else:
        found = [pa.Table.from_batches([batch]) for batch in iter_batches(path, schema, names)]
    chosen = pa.schema([schema.field(name) for name in names])
    whole = pa.concat_tables([one.cast(chosen) for one in found]) if found else chosen.empty_table()
    return whole.replace_schema_metadata(schema.metadata)


def iter_matches(
    path: Path, schema: pa.Schema, only: pc.Expression, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The rows ``only`` of each part in turn, part by part.

    Raises:
        VitrailError: as :func:`parts` and :func:`opened`, for a part when it is reached.
    """
    names = list(columns or schema.names)
    chosen = pa.schema([schema.field(name) for name in names], metadata=schema.metadata)
    for file in parts(path, schema):
        opened(file, schema).close()
        try:
            yield pq.read_table(file, columns=names, filters=only).select(names).cast(chosen)
        except PARQUET_FAULTS as fault:
            raise _damaged(file, schema, fault) from None


def write_part(path: Path, rows: pa.Table, schema: pa.Schema) -> Path:
    """Write ``rows`` as one Parquet file under ``schema``, which appears whole or not at all; returns ``path``.

    Equal rows give equal bytes.
    """
    table = rows.select(schema.names).cast(schema).replace_schema_metadata(schema.metadata)
    # Parquet's statistics leave NaN out: where all other values are equal, DuckDB takes the column for a constant.
    counted = [one.name for one in schema if not pa.types.is_floating(one.type) and not pa.types.is_nested(one.type)]
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=GROUP_ROWS, write_statistics=counted)
    return path


def assemble(folder: Path, files: Sequence[Path], schema: pa.Schema) -> None:
    """Make ``files`` (of :func:`write_part`, by workers say) the parts of the table ``folder``.

    They stay where they are, too, so that a killed run finds them again; on one file system both are one file.
    ``folder`` should be below one that appears whole (``atomic_dir``).
    """
    if not files:
        write_table(folder, schema.empty_table(), schema)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        part = folder / part_name(number, len(files))
        try:
            os.link(file, part)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(file, part)


def write_table(path: Path, rows: pa.Table | list[dict[str, Any]], schema: pa.Schema) -> None:
    """Write ``rows`` as the table ``path``, which appears whole or not at all: for what is known to be small."""
    with PartWriter(path, schema) as writer:
        writer.write(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema))


def digest(path: Path, schema: pa.Schema) -> str:
    """SHA-256 (hex) of the bytes of a table's parts, one after the other."""
    content = hashlib.sha256()
    for file in parts(path, schema):
        with open(file, "rb") as opened_file:
            while block := opened_file.read(1 << 20):
                content.update(block)
    return content.hexdigest()


class PartWriter:
    """Writes a table as parts of ``rows`` rows; the folder appears whole when the block ends, or not at all.

    What batches come in makes no difference to the bytes of the parts. One part is held in memory.
    """

    def __init__(self, folder: Path, schema: pa.Schema, rows: int = PART_ROWS) -> None:
        self.count = 0  # rows written so far
        self._schema, self._rows = schema, rows
        self._held: list[pa.Table] = []
        self._waiting = 0
        self._files: list[Path] = []
        self._whole: AbstractContextManager[Path] = atomic_dir(folder)
        self._folder = folder

    def write(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Append ``rows``, which have the schema's columns."""
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        self.count += len(table)
        while len(table):
            piece = table.slice(0, self._rows - self._waiting)
            self._held.append(piece.select(self._schema.names).cast(self._schema))
            self._waiting += len(piece)
            table = table.slice(len(piece))
            if self._waiting == self._rows:
                self._flush()

    def _flush(self) -> None:
        path = self._folder / f"{len(self._files)}.parquet"
        rows = pa.concat_tables(self._held) if self._held else self._schema.empty_table()
        self._files.append(write_part(path, rows, self._schema))
        self._held.clear()
        self._waiting = 0

    def __enter__(self) -> PartWriter:
        self._folder = self._whole.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._waiting or not self._files:
                    self._flush()
                for number, file in enumerate(self._files):
                    os.replace(file, self._folder / part_name(number, len(self._files)))
        except BaseException as late:
            self._whole.__exit__(type(late), late, late.__traceback__)
            raise
        self._whole.__exit__(kind, fault, trace)


def _again(schema: pa.Schema) -> str:
    return f"run the {said(schema, 'stage')} stage again"


def _damaged(path: Path, schema: pa.Schema, fault: Exception) -> VitrailError:
    words = " ".join(str(fault).split())[:120]
    return VitrailError(f"{path}: a damaged {said(schema, 'table')} ({words}); {_again(schema)}")
