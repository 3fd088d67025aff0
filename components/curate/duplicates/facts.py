"""After decoding: what is known of every row of a part, and which rows have the same bytes as an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.curate.links.places import read_rows, spread, write_places
from components.storage import atomic_file
from components.tables.database import write_file
from components.web.rules.block_list import Forgotten

FACTS = pa.schema(
    [("row", pa.int64()), ("key", pa.string()), ("reason", pa.string()), ("sha256", pa.string()),
     ("bytes", pa.int64()), ("format", pa.string()), ("width", pa.int32()), ("height", pa.int32())]
)  # fmt: skip

# The first row that has these bytes stays; `original` is its row.
_EXACT = """
    SELECT fact."row" AS "row", first.original
    FROM read_parquet($facts) AS fact
    JOIN (
        SELECT sha256, min("row") AS original FROM read_parquet($facts) WHERE reason = ''
        GROUP BY sha256 HAVING count(*) > 1
    ) AS first USING (sha256)
    WHERE fact.reason = '' AND fact."row" <> first.original
    ORDER BY fact."row"
"""


@dataclass(frozen=True)
class FactsItem:
    """One part of rows, and the results of its chunks."""

    judged: Path
    examined: tuple[Path, ...]
    forgotten: tuple[Path, ...]  # block lists
    out: Path


def collect(item: FactsItem) -> Path:
    """Write :data:`FACTS`, a row for each of the part; skipped if the file is in the work folder."""
    if item.out.exists():
        return item.out
    rows = pq.read_table(item.judged, columns=["row", "key", "reason"])
    first, count = first_row(rows), len(rows)
    names = ["row", "reason", "sha256", "bytes", "format", "width", "height"]
    found = [pq.read_table(path, columns=names) for path in item.examined]
    columns = spread(pa.concat_tables(found), first, count) if found else {}
    result = {"row": rows["row"], "key": rows["key"]}
    for one in list(FACTS)[3:]:
        blank = pa.scalar("" if one.type == pa.string() else 0, one.type)
        column = columns.get(one.name, pa.nulls(count, one.type))
        result[one.name] = pc.fill_null(column, blank)
    # An address that policy dropped was not decoded.
    result["reason"] = pc.coalesce(columns.get("reason", pa.nulls(count, pa.string())), rows["reason"])
    digests = Forgotten.read(item.forgotten).digests
    if digests:
        here = pc.is_in(result["sha256"], pa.array(sorted(digests), pa.string()))
        gone = pc.and_(here, pc.equal(result["reason"], ""))
        result["reason"] = pc.if_else(gone, "forgotten", result["reason"])
    with atomic_file(item.out) as file:
        pq.write_table(pa.table(result).select(FACTS.names).cast(FACTS), file, compression="zstd")
    return item.out


def first_row(rows: pa.Table) -> int:
    """The number of a part's first row."""
    return int(rows["row"][0].as_py()) if len(rows) else 0


def exact_copies(connection: Any, facts: Sequence[Path], out: Path) -> int:
    """Write (row, original) of every row whose bytes an earlier row has; returns how many."""
    if out.exists():
        return int(pq.read_metadata(out).num_rows)
    return write_file(connection, _EXACT, {"facts": [str(path) for path in facts]}, out)


def left_of(facts: Path, copies: Sequence[Path]) -> pa.Table:
    """Rows of a part that nothing has dropped: neither a reason in ``facts`` nor a row in one of ``copies``."""
    rows = pq.read_table(facts)
    first, count = first_row(rows), len(rows)
    stays = pc.equal(rows["reason"], "").to_numpy().copy()
    for path in copies:
        stays[read_rows(path, first, count, ["row"])["row"].to_numpy() - first] = False
    return rows.filter(pa.array(stays))


@dataclass(frozen=True)
class SurvivorsItem:
    """One part, of which the places of what no check for copies dropped are wanted."""

    places: Path
    facts: Path
    copies: tuple[Path, ...]
    chunk: int
    out: Path


def survivors(item: SurvivorsItem) -> tuple[Path, int]:
    """Write the places of a part's survivors; returns the file and how many there are."""
    if not item.out.exists():
        left = left_of(item.facts, item.copies)
        places = pq.read_table(item.places)
        order = np.searchsorted(places["row"].to_numpy(), left["row"].to_numpy())
        chosen = places.take(pa.array(order))
        for name in ("format", "sha256"):
            chosen = chosen.set_column(chosen.column_names.index(name), name, left[name])
        write_places(item.out, chosen, item.chunk)
    return item.out, int(pq.read_metadata(item.out).num_rows)
