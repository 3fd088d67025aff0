"""What happens to every image of the pool, by joins: the one place where dedup decides.

``decided`` has a row for every row of the pool. Decisions and manifest are written from it, part by part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.dedup.files import JoinFiles
from components.tables.database import write_file, write_query
from components.tables.schemas import DECISIONS, MANIFEST

HELD_OUT = "held-out"  # copies a benchmark's held-out image, or is in one component with such a copy
IDENTICAL = "held-out-identical"  # has the very bytes of a benchmark's held-out image
SELF_DUPLICATE = "self-duplicate"
NOT_RETRIEVED = "not-retrieved"
NOT_SAMPLED = "not-sampled"  # balancing took others of its clusters
BALANCED = "balanced"  # selected by balancing
POOL = "pool"  # selected, as all that survives is
REASONS = (HELD_OUT, IDENTICAL, SELF_DUPLICATE, NOT_RETRIEVED, NOT_SAMPLED)


@dataclass(frozen=True)
class Selection:
    """What chooses among the rows that survive: queries, an even sample, or neither, when all are selected."""

    kind: str = POOL  # POOL, "retrieved" or BALANCED
    queries: Sequence[str] = ()  # keys of the query images that `found` numbers
    reasons: Sequence[str] = ()  # what a row that each brought is selected for


def decide(connection: Any, files: JoinFiles, held_out: Sequence[str], selection: Selection) -> None:
    """Write ``files.decided`` from state, leaks, deciding edges and what was found; ``held_out`` are keys [M]."""
    queries = pa.table(
        {
            "query": pa.array(range(len(selection.queries)), pa.int64()),
            "query_key": pa.array(list(selection.queries), pa.string()),
            "query_reason": pa.array(list(selection.reasons), pa.string()),
        }
    )
    references = pa.table(
        {"reference": pa.array(range(len(held_out)), pa.int64()), "held_key": pa.array(list(held_out), pa.string())}
    )
    connection.register("queries", queries)
    connection.register("held", references)
    found = f"read_parquet('{files.found}')" if selection.kind != POOL else '(SELECT NULL::BIGINT AS "row")'
    times, query, cosine = ("f.times", "f.query", "f.similarity") if selection.kind == "retrieved" else ["NULL"] * 3
    whole = "CASE WHEN q.query_key <> '' THEN 0 END"
    gone = {
        POOL: f"'{POOL}'",
        BALANCED: f"CASE WHEN f.\"row\" IS NULL THEN '{NOT_SAMPLED}' ELSE '{BALANCED}' END",
        "retrieved": f"CASE WHEN f.\"row\" IS NULL THEN '{NOT_RETRIEVED}' ELSE q.query_reason END",
    }[selection.kind]
    text = f"""
        WITH rows AS (SELECT "row", key FROM read_parquet('{files.rows}')),
        joined AS (
            SELECT s."row", s.component, s.leak >= 0 AS goes, s.kept, l."row" IS NOT NULL AS leaks,
                coalesce(l.identical, false) AS identical, h.held_key,
                coalesce(l.similarity, d.similarity, {cosine}) AS similarity,
                coalesce(l.view, d.view, {whole}, -1)::SMALLINT AS view,
                coalesce(l.match_view, d.match_view, {whole}, -1)::SMALLINT AS match_view,
                d.other, q.query_key, {times} AS times, {gone} AS kind
            FROM read_parquet('{files.state}') AS s
            LEFT JOIN read_parquet('{files.leaks}') AS l ON l."row" = s."row"
            LEFT JOIN held AS h ON h.reference = l.reference
            LEFT JOIN read_parquet('{files.deciding}') AS d ON d."row" = s."row"
            LEFT JOIN {found} AS f ON f."row" = s."row"
            LEFT JOIN queries AS q ON q.query = {query}
        )
        SELECT j."row", r.key,
            CASE WHEN goes OR kept <> j."row" OR kind IN ('{NOT_RETRIEVED}', '{NOT_SAMPLED}')
                THEN 'dropped' ELSE 'selected' END AS status,
            CASE WHEN goes AND identical THEN '{IDENTICAL}' WHEN goes THEN '{HELD_OUT}'
                WHEN kept <> j."row" THEN '{SELF_DUPLICATE}' ELSE kind END AS reason,
            component, CASE WHEN goes THEN '' ELSE k.key END AS representative,
            coalesce(held_key, o.key, query_key, '') AS match, coalesce(similarity, 'nan'::FLOAT)::FLOAT AS similarity,
            view, match_view, coalesce(times, 1)::FLOAT AS weight
        FROM joined AS j JOIN rows AS r ON r."row" = j."row"
        LEFT JOIN rows AS k ON k."row" = j.kept
        LEFT JOIN rows AS o ON o."row" = j.other"""
    write_file(connection, text, {}, files.decided)


def write_decisions(connection: Any, files: JoinFiles, out: Path) -> int:
    """Write ``tables.DECISIONS`` to ``out``, a row of the pool each and in its order; returns how many."""
    names = ", ".join(DECISIONS.names)
    return write_query(
        connection, f"SELECT {names} FROM read_parquet('{files.decided}') ORDER BY \"row\"", {}, out, DECISIONS
    )


def write_manifest(connection: Any, files: JoinFiles, out: Path) -> int:
    """Write ``tables.MANIFEST`` to ``out``: the rows that are selected, in the pool's order; returns how many."""
    brought = files.brought
    sources = '(SELECT NULL::BIGINT AS "row", NULL::VARCHAR[] AS sources)'
    if brought.exists():
        sources = f'(SELECT "row", list(name ORDER BY name) AS sources FROM read_parquet(\'{brought}\') GROUP BY "row")'
    text = f"""
        SELECT d.key, r.shard, r."offset", r.length, r.width, r.height, d.weight, d.reason,
            coalesce(b.sources, []::VARCHAR[]) AS sources
        FROM read_parquet('{files.decided}') AS d JOIN read_parquet('{files.rows}') AS r ON r."row" = d."row"
        LEFT JOIN {sources} AS b ON b."row" = d."row"
        WHERE d.status = 'selected' ORDER BY d."row" """
    return write_query(connection, text, {}, out, MANIFEST)


def count_reasons(connection: Any, files: JoinFiles) -> tuple[dict[str, int], int]:
    """How many rows have each reason, by name, and how many are selected."""
    text = f"SELECT reason, status, count(*) FROM read_parquet('{files.decided}') GROUP BY ALL ORDER BY reason"
    counted = connection.execute(text).fetchall()
    return {reason: count for reason, _, count in counted}, sum(n for _, status, n in counted if status == "selected")
