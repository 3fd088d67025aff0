"""What happens to every image of the pool: the one place where dedup decides.

Two joins look up the keys of other images; then one walk over the pool, in its order, writes decisions and manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.dedup.decisions.files import JoinFiles, RowReader, at_rows, taken
from components.progress import track
from components.tables.database import write_file
from components.tables.parts import PartWriter
from components.tables.schemas import DECISIONS, MANIFEST

HELD_OUT = "held-out"  # copies a benchmark's held-out image, or is in one component with such a copy
IDENTICAL = "held-out-identical"  # has the very bytes of a benchmark's held-out image
SELF_DUPLICATE = "self-duplicate"
NOT_RETRIEVED = "not-retrieved"
NOT_SAMPLED = "not-sampled"  # balancing took others of its clusters
BALANCED = "balanced"  # selected by balancing
POOL = "pool"  # selected, as all that survives is
REASONS = (HELD_OUT, IDENTICAL, SELF_DUPLICATE, NOT_RETRIEVED, NOT_SAMPLED)
BLOCK = 1 << 14  # rows decided at a time


@dataclass(frozen=True)
class Selection:
    """What chooses among the rows that survive: queries, an even sample, or neither, when all are selected."""

    kind: str = POOL  # POOL, "retrieved" or BALANCED
    queries: Sequence[str] = ()  # keys of the query images that `found` numbers
    reasons: Sequence[str] = ()  # what a row that each brought is selected for


def decide(
    connection: Any, files: JoinFiles, held_out: Sequence[str], selection: Selection
) -> tuple[dict[str, int], int]:
    """Write ``tables.DECISIONS`` to ``files.decisions`` and ``tables.MANIFEST`` to ``files.manifest``.

    Both are in the pool's order. ``held_out`` are keys [M]. Returns how many rows have each reason, by name, and how
    many are selected.
    """
    _look_up(connection, files, selection)
    names = _Names(*(pa.array(keys, pa.string()) for keys in (held_out, selection.queries, selection.reasons)))
    reasons: Counter[str] = Counter()
    with (
        PartWriter(files.decisions, DECISIONS) as decisions,
        PartWriter(files.manifest, MANIFEST) as manifest,
    ):
        for rows in _blocks(files, selection):
            decided = _decided(rows, names, selection.kind)
            decisions.write(decided)
            manifest.write(_selected(rows, decided))
            for counted in pc.value_counts(decided["reason"]).to_pylist():
                reasons[counted["values"]] += counted["counts"]
    return dict(sorted(reasons.items())), manifest.count


class _Names(NamedTuple):
    """What the numbers in files stand for."""

    held_out: pa.Array  # keys of held-out images [M]
    queries: pa.Array  # keys of query images [Q]
    reasons: pa.Array  # what a row that each brought is selected for [Q]


@dataclass(frozen=True)
class _Rows:
    """Rows of the pool that follow each other, n of them, and what is known of some."""

    number: NDArray[np.int64]  # [n]
    images: pa.Table  # of `files.rows` [n]
    component: NDArray[np.int64]
    kept: NDArray[np.int64]
    leak: NDArray[np.int64]
    found: tuple[pa.Table, NDArray[np.int64]]  # rows of each table, and which of them is about each row [n]; -1: none
    leaks: tuple[pa.Table, NDArray[np.int64]]
    deciding: tuple[pa.Table, NDArray[np.int64]]
    representatives: tuple[pa.Table, NDArray[np.int64]]
    brought: pa.Table


def _look_up(connection: Any, files: JoinFiles, selection: Selection) -> None:
    """Put keys beside the numbers of other rows, and what was found in the pool's order."""
    rows = f"read_parquet('{files.rows}')"
    write_file(
        connection,
        f"""SELECT s."row", r.key FROM read_parquet('{files.state}') AS s JOIN {rows} AS r ON r."row" = s.kept
            WHERE s.leak < 0 AND s.kept <> s."row" ORDER BY s."row" """,
        {},
        files.representatives,
    )
    write_file(
        connection,
        f"""SELECT d."row", r.key, d.similarity, d.view, d.match_view FROM read_parquet('{files.deciding}') AS d
            JOIN {rows} AS r ON r."row" = d.other ORDER BY d."row" """,
        {},
        files.matches,
    )
    if selection.kind != POOL:
        write_file(connection, f"FROM read_parquet('{files.found}') ORDER BY \"row\"", {}, files.found_in_order)
    if files.brought.exists():
        write_file(
            connection, f"FROM read_parquet('{files.brought}') ORDER BY \"row\", place", {}, files.brought_in_order
        )


def _blocks(files: JoinFiles, selection: Selection) -> Iterator[_Rows]:
    with ExitStack() as stack:

        def reader(path: Any, there: bool = True) -> RowReader:
            return stack.enter_context(RowReader(path if there else None))

        images, state, leaks = reader(files.rows), reader(files.state), reader(files.leaks)
        matches, representatives = reader(files.matches), reader(files.representatives)
        found = reader(files.found_in_order, selection.kind != POOL)
        brought = reader(files.brought_in_order, files.brought.exists())
        for start in track(range(0, images.count, BLOCK), "decisions", -(-images.count // BLOCK), unit="blocks"):
            stop = min(start + BLOCK, images.count)
            own = state.upto(stop)
            yield _Rows(
                np.arange(start, stop),
                images.upto(stop),
                own["component"].to_numpy(),
                own["kept"].to_numpy(),
                own["leak"].to_numpy(),
                found=at_rows(found.upto(stop), start, stop - start),
                leaks=at_rows(leaks.upto(stop), start, stop - start),
                deciding=at_rows(matches.upto(stop), start, stop - start),
                representatives=at_rows(representatives.upto(stop), start, stop - start),
                brought=brought.upto(stop),
            )


def _decided(rows: _Rows, names: _Names, kind: str) -> pa.Table:
    """The rows' decisions."""
    goes, copy = rows.leak >= 0, rows.kept != rows.number
    (found, of_found), (leaks, of_leak), (matches, of_match) = rows.found, rows.leaks, rows.deciding
    survives = ~goes & ~copy
    brought = survives & (of_found >= 0)
    reason = np.full(len(goes), SELF_DUPLICATE, object)
    reason[survives] = {POOL: POOL, BALANCED: NOT_SAMPLED}.get(kind, NOT_RETRIEVED)
    reason[goes] = HELD_OUT
    reason[goes & (of_leak >= 0) & taken(leaks, "identical", of_leak, False)] = IDENTICAL
    # What decided: a held-out image, else another of the pool, else a query.
    keys = taken(matches, "key", of_match, "")
    similarity, view = np.full(len(goes), np.nan, np.float32), np.full(len(goes), -1, np.int16)
    match_view = view.copy()
    if kind == BALANCED:
        reason[brought] = BALANCED
    elif kind != POOL:
        query = pa.array(taken(found, "query", of_found, 0)[brought])
        keys[brought] = _words(names.queries, query)
        reason[brought] = _words(names.reasons, query)
        similarity[brought] = taken(found, "similarity", of_found, np.nan)[brought]
        whole = brought & (keys != "")
        view[whole] = match_view[whole] = 0
    for table, of in ((matches, of_match), (leaks, of_leak)):
        there = of >= 0
        similarity[there] = taken(table, "similarity", of, np.nan)[there]
        view[there], match_view[there] = taken(table, "view", of, 0)[there], taken(table, "match_view", of, 0)[there]
    leaking = of_leak >= 0
    keys[leaking] = _words(names.held_out, pa.array(taken(leaks, "reference", of_leak, 0)[leaking]))
    representative = np.where(goes, "", rows.images["key"].to_numpy())
    other, of_other = rows.representatives
    representative[of_other >= 0] = taken(other, "key", of_other, "")[of_other >= 0]
    selected = survives & (brought if kind != POOL else True)
    columns = {
        "key": rows.images["key"],
        "status": np.where(selected, "selected", "dropped"),
        "reason": reason,
        "component": rows.component,
        "representative": representative,
        "match": keys,
        "similarity": similarity,
        "view": view,
        "match_view": match_view,
    }
    return pa.table({field.name: _column(columns[field.name], field.type) for field in DECISIONS}, schema=DECISIONS)


def _words(known: pa.Array, numbers: pa.Array) -> NDArray[np.object_]:
    return np.asarray(known.take(numbers).to_numpy(zero_copy_only=False))


def _column(values: Any, kind: pa.DataType) -> Any:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


def _selected(rows: _Rows, decided: pa.Table) -> pa.Table:
    """The manifest's rows among them."""
    mask = pc.equal(decided["status"], "selected")
    which = np.flatnonzero(mask.to_numpy())
    found, of_found = rows.found
    weight = taken(found, "times", of_found, 1)[which] if "times" in found.column_names else np.ones(len(which))
    names = rows.brought["name"] if len(rows.brought) else pa.array([], pa.string())
    owner = rows.brought["row"].to_numpy() if len(rows.brought) else np.zeros(0, np.int64)
    # Each row's names follow each other, and rows that are not selected have none.
    kept = np.isin(owner, rows.number[which])
    ends = np.searchsorted(owner[kept], rows.number[which], "right")
    names = names.filter(pa.array(kept)) if len(owner) else names
    values = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
    columns: dict[str, Any] = {
        name: rows.images[name].filter(mask) for name in ("key", "shard", "offset", "length", "width", "height")
    }
    columns |= {
        "weight": pa.array(weight, pa.float32()),
        "reason": decided["reason"].filter(mask),
        "sources": pa.ListArray.from_arrays(pa.array(np.r_[0, ends], pa.int32()), values),
    }
    return pa.table(columns).select(MANIFEST.names).cast(MANIFEST)
