"""One row an image address, from any number of link tables, in bounded memory (DuckDB, which spills to disk).

Of the links to one address the first met is kept, and the address is opted out when any page that names it opts out.
Only fixed-size values (a position, a flag) are aggregated and joined, for those DuckDB can write aside when they
outgrow its memory; texts are streamed past them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from components.params import Strict
from components.storage import atomic_file

_UNIQUE = """
    SELECT link.* EXCLUDE (opt_out), first.opt_out
    FROM read_parquet($tables) AS link
    JOIN (
        SELECT min(position) AS position, bool_or(opt_out) AS opt_out FROM read_parquet($tables) GROUP BY url
    ) AS first ON link.position = first.position
    ORDER BY link.position
"""


class MemoryParams(Strict):
    """What DuckDB may use while links are made unique."""

    megabytes: int = Field(512, ge=64, le=10_000_000)  # beyond it, partitions go to disk
    threads: int = Field(2, ge=1, le=4096)


def unique_links(tables: Sequence[Path], out: Path, params: MemoryParams) -> int:
    """Write the unique rows of ``tables`` (:data:`components.web.scan.LINKS`) to ``out``, by position; how many.

    ``position`` must differ from row to row over all tables.
    """
    with connect(out.parent / f"{out.name}.spill", params) as connection:
        copy(connection, _UNIQUE, {"tables": [str(table) for table in tables]}, out)
        (count,) = connection.execute("SELECT count(*) FROM read_parquet($out)", {"out": str(out)}).fetchone()
    return int(count)


def shuffled(table: Path, partition: int, out: Path, params: MemoryParams) -> int:
    """Write the addresses of one partition of ``table`` to ``out``, in the order of their hash; returns how many.

    In that order neighbours lie on different hosts, so that no host is asked in bursts, and it is the same every time.
    """
    with connect(out.parent / f"{out.name}.spill", params) as connection:
        values = {"table": str(table), "partition": partition}
        copy(
            connection, "SELECT url FROM read_parquet($table) WHERE partition = $partition ORDER BY shuffle, url",
            values, out,
        )  # fmt: skip
        (count,) = connection.execute("SELECT count(*) FROM read_parquet($out)", {"out": str(out)}).fetchone()
    return int(count)


def connect(spill: Path, params: MemoryParams) -> Any:
    """A DuckDB connection within ``params``, writing aside in the folder ``spill``; use as a context manager."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET memory_limit = $limit", {"limit": f"{params.megabytes}MB"})
    connection.execute("SET temp_directory = $folder", {"folder": str(spill)})
    connection.execute(f"SET threads = {params.threads}")
    connection.execute("SET preserve_insertion_order = false")  # the queries say what order they want
    connection.execute("SET enable_progress_bar = false")
    return connection


def copy(connection: Any, query: str, values: dict[str, Any], out: Path) -> None:
    """Write the rows of ``query`` to the Parquet file ``out``, which appears whole or not at all."""
    with atomic_file(out) as file:
        target = str(file.name).replace("'", "''")
        connection.execute(
            f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 16384)", values
        )
