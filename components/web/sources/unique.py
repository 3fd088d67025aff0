"""One row an image address, from any number of link tables, in bounded memory (DuckDB, which spills to disk).

Of the links to one address the first met is kept, and the address is opted out when any page that names it opts out.
Only fixed-size values (a position, a flag) are aggregated and joined, for those DuckDB can write aside when they
outgrow its memory; texts are streamed past them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.tables.database import MemoryParams, database, write_file

UNIQUE = """
    SELECT link.* EXCLUDE (opt_out), first.opt_out
    FROM read_parquet($tables) AS link
    JOIN (
        SELECT min(position) AS position, bool_or(opt_out) AS opt_out FROM read_parquet($tables) GROUP BY url
    ) AS first ON link.position = first.position
    ORDER BY link.position
"""


def unique_links(tables: Sequence[Path], out: Path, memory: MemoryParams) -> int:
    """Write the unique rows of ``tables`` (:data:`components.tables.schemas.LINKS`) to ``out``, by position; how many.

    ``position`` must differ from row to row over all tables.
    """
    with database(memory, out.parent) as connection:
        return write_file(connection, UNIQUE, {"tables": [str(table) for table in tables]}, out)


def shuffled(table: Path, partition: int, out: Path, memory: MemoryParams) -> int:
    """Write the addresses of one partition of ``table`` to ``out``, in the order of their hash; returns how many.

    In that order neighbours lie on different hosts, so that no host is asked in bursts, and it is the same every time.
    """
    query = "SELECT url FROM read_parquet($table) WHERE partition = $partition ORDER BY shuffle, url"
    with database(memory, out.parent) as connection:
        return write_file(connection, query, {"table": str(table), "partition": partition}, out)
