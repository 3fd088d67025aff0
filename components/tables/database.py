"""Joins larger than memory, in DuckDB: a memory limit, a folder for what does not fit, and faults as one line."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from components.errors import VitrailError
from components.params import Strict
from components.storage import atomic_file
from components.tables.parts import GROUP_ROWS, PART_ROWS, PartWriter

_FULL = ("failed to offload", "max_temp_directory_size", "No space left on device")


class MemoryParams(Strict):
    """What a join may use."""

    megabytes: int = Field(
        512, ge=64, le=10_000_000
    )  # of memory for one join; what does not fit goes to the spill folder
    threads: int = Field(2, ge=1, le=4096)
    spill: Path | None = None  # the spill folder; None: in the stage's work folder, beside its output
    spill_gigabytes: float | None = Field(None, gt=0, le=1_000_000)  # the most it may hold; None: what the disk has


@contextlib.contextmanager
def database(memory: MemoryParams, work: Path) -> Iterator[Any]:
    """A DuckDB connection within ``memory``; it spills below ``memory.spill``, or else below ``work``.

    Rows come in no order unless a query asks for one. Use :func:`stream` and :func:`write_query` for results.

    Raises:
        VitrailError: the spill folder is full, or the memory too small for one step of a join.
    """
    import duckdb

    above = memory.spill or work
    above.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(above)
    spill = Path(tempfile.mkdtemp(dir=above, prefix=f".spill-{socket.gethostname()}-{os.getpid()}-"))
    connection = duckdb.connect()
    try:
        connection.execute("SET memory_limit = $limit", {"limit": f"{memory.megabytes}MB"})
        connection.execute("SET temp_directory = $folder", {"folder": str(spill)})
        if memory.spill_gigabytes is not None:
            limit = f"{int(memory.spill_gigabytes * 1000)}MB"
            connection.execute("SET max_temp_directory_size = $limit", {"limit": limit})
        connection.execute(f"SET threads = {memory.threads}")
        connection.execute("SET preserve_insertion_order = false")  # the queries say what order they want
        connection.execute("SET enable_progress_bar = false")
        yield connection
    except (duckdb.Error, pa.ArrowException, OSError) as fault:
        raise _told(fault, memory, above) from None
    finally:
        connection.close()
        shutil.rmtree(spill, ignore_errors=True)


def stream(
    connection: Any, query: str, values: Mapping[str, object] | None = None, rows: int = GROUP_ROWS
) -> pa.RecordBatchReader:
    """The rows of ``query`` as Arrow batches, of which few are in memory at a time."""
    # Not `execute`: its result is gathered whole before the first batch is handed out.
    return connection.sql(query, params=dict(values or {})).to_arrow_reader(rows)


def write_query(
    connection: Any, query: str, values: Mapping[str, object], folder: Path, schema: pa.Schema, rows: int = PART_ROWS
) -> int:
    """Write the rows of ``query`` as the table ``folder``, in parts of ``rows``; returns how many there are."""
    with PartWriter(folder, schema, rows) as writer:
        for batch in stream(connection, query, values):
            writer.write(batch)
    return writer.count


def write_file(connection: Any, query: str, values: Mapping[str, object], path: Path) -> int:
    """Write the rows of ``query`` to one Parquet file, which appears whole or not at all; returns how many.

    For what stays inside a stage's work folder and DuckDB reads again.
    """
    with atomic_file(path) as file:
        target = str(file.name).replace("'", "''")
        copied = f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {GROUP_ROWS})"
        connection.execute(copied, dict(values))
    return int(pq.read_metadata(path).num_rows)


def _told(fault: Exception, memory: MemoryParams, above: Path) -> Exception:
    """``fault`` as one line where a user can mend it; else as it is."""
    words = " ".join(str(fault).split())
    if any(sign in words for sign in _FULL):
        return VitrailError(
            f"{above}: the spill folder is full; free some space there, or name another folder under memory.spill, and"
            " run the same command again: finished work is kept"
        )
    if "Out of Memory" in words:
        return VitrailError(
            f"memory.megabytes: {memory.megabytes} are too few for one step of a join; raise it, or lower"
            " memory.threads, and run the same command again"
        )
    return fault


def _remove_abandoned(above: Path) -> None:
    """Remove what processes of this machine left that were killed while they joined."""
    prefix = f".spill-{socket.gethostname()}-"
    for folder in above.glob(f"{prefix}*"):
        number = folder.name.removeprefix(prefix).partition("-")[0]
        if number.isdigit() and not os.path.exists(f"/proc/{number}"):
            shutil.rmtree(folder, ignore_errors=True)
