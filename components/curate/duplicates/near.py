"""Near copies by PCA hash, of any number of images: buckets of equal hashes, compared partition by partition.

The rule (see :func:`near_copies`) is that of a loop over all images, larger ones first. Only the first image of a
bucket can be kept, so buckets are compared. Two hashes within ``radius`` bits agree in one of ``radius + 1`` runs of
bytes: hashes are partitioned by each run in turn, and each partition is searched by itself. Whether a bucket is kept
depends on earlier neighbours alone: one walk over the pairs, sorted, with a byte of a mapped file for each bucket that
has a neighbour.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.executor import ExecutorParams, map_shards
from components.neighbours import hamming_pairs
from components.storage import atomic_file
from components.tables.database import MemoryParams, database, stream, write_file

PARTITION = 1 << 17  # hashes compared with each other at a time

HASHED = pa.schema([("row", pa.int64()), ("hash", pa.string()), ("area", pa.int64())])  # hash: hex; area: pixels
PAIRS = pa.schema(
    [("earlier", pa.int64()), ("later", pa.int64()), ("distance", pa.int32()), ("earlier_area", pa.int64()),
     ("later_area", pa.int64())]
)  # fmt: skip  # rows of buckets' first images

_SHIFT = 1 << 62  # above any row number: (a, row) as one number, a * _SHIFT + row
# A bucket by its first image: the largest, of equally large ones the earliest.
_BUCKETS = f"""
    SELECT hash, max(area) AS area, arg_min("row", (-area)::HUGEINT * {_SHIFT} + "row") AS "row"
    FROM read_parquet($hashed) GROUP BY hash
"""
_RANKED = """
    SELECT "row", area, row_number() OVER (ORDER BY area DESC, "row") - 1 AS rank FROM (
        SELECT earlier AS "row", earlier_area AS area FROM read_parquet($pairs)
        UNION SELECT later, later_area FROM read_parquet($pairs)
    )
"""
_WALK = """
    SELECT later.rank AS later, earlier.rank AS earlier
    FROM read_parquet($pairs) AS pair
    JOIN read_parquet($ranked) AS later ON pair.later = later."row"
    JOIN read_parquet($ranked) AS earlier ON pair.earlier = earlier."row"
    ORDER BY later.rank, earlier.rank
"""
# Of a bucket whose first image is kept, the rest copies it. Else each image copies the nearest kept one before it.
_ORIGINALS = f"""
    WITH member AS (
        SELECT hashed."row" AS "row", hashed.area AS area, bucket."row" AS first, dropped."row" IS NULL AS kept
        FROM read_parquet($hashed) AS hashed
        JOIN read_parquet($buckets) AS bucket USING (hash)
        LEFT JOIN read_parquet($dropped) AS dropped ON bucket."row" = dropped."row"
    ), near AS (
        SELECT earlier AS one, later AS other, later_area AS other_area, distance FROM read_parquet($pairs)
        UNION ALL SELECT later, earlier, earlier_area, distance FROM read_parquet($pairs)
    ), near_kept AS (
        SELECT near.* FROM near SEMI JOIN read_parquet($dropped) AS gone ON near.one = gone."row"
        ANTI JOIN read_parquet($dropped) AS lost ON near.other = lost."row"
    )
    SELECT "row", original FROM (
        SELECT "row", first AS original FROM member WHERE kept AND "row" <> first
        UNION ALL
        SELECT member."row", arg_min(near_kept.other, near_kept.distance::HUGEINT * {_SHIFT} + near_kept.other)
        FROM member JOIN near_kept ON near_kept.one = member.first
        WHERE NOT member.kept AND (near_kept.other_area > member.area
              OR (near_kept.other_area = member.area AND near_kept.other < member."row"))
        GROUP BY member."row"
    ) ORDER BY "row"
"""


@dataclass(frozen=True)
class Search:
    """How near copies are found."""

    bits: int  # of a hash
    radius: int  # bits that may differ
    memory: MemoryParams
    executor: ExecutorParams
    partition: int = field(default_factory=lambda: PARTITION)  # read when a search begins


def near_copies(hashed: Sequence[Path], out: Path, how: Search) -> int:
    """Write (row, original) of every near copy among ``hashed`` (:data:`HASHED`) to ``out``; returns how many.

    Larger images are kept before smaller ones, then earlier before later. An image is a copy of the nearest one within
    ``radius`` bits that is kept, so likeness never chains from image to image. Files of the work are beside ``out``.
    """
    if out.exists():
        return int(pq.read_metadata(out).num_rows)
    work = out.parent
    buckets, ranked, dropped = (work / f"near-{name}.parquet" for name in ("buckets", "ranked", "dropped"))
    sources = {"hashed": [str(path) for path in hashed], "buckets": str(buckets)}
    with database(how.memory, work) as connection:
        if not buckets.exists():
            write_file(connection, _BUCKETS, {"hashed": sources["hashed"]}, buckets)
        runs = _partitions(connection, buckets, how)
    items = [PairsItem(path, part, run, of, how) for path, parts, run, of in runs for part in range(parts)]
    pairs = [str(path) for path in map_shards(find_pairs, items, how.executor)]
    with database(how.memory, work) as connection:
        write_file(connection, _RANKED, {"pairs": pairs}, ranked)
        _walk(connection, pairs, ranked, dropped)
        return write_file(connection, _ORIGINALS, sources | {"pairs": pairs, "dropped": str(dropped)}, out)


def _partitions(connection: Any, buckets: Path, how: Search) -> list[tuple[Path, int, int, int]]:
    """(file, partitions in it, run, runs): buckets partitioned by each run of their hashes; one file where few are."""
    count, runs = int(pq.read_metadata(buckets).num_rows), how.radius + 1
    parts = -(-count // how.partition)
    if parts <= 1 or runs > how.bits // 8:  # with runs shorter than a byte everything is compared with everything
        return [(buckets, 1, 0, 1)]
    found = []
    for run in range(runs):
        path = buckets.with_name(f"near-run-{run}.parquet")
        start, stop = _run(how.bits, run, runs)
        if not path.exists():
            part = f"hash(substr(hash, {2 * start + 1}, {2 * (stop - start)})) % {parts}"
            write_file(
                connection, f"SELECT *, {part} AS part FROM read_parquet($buckets) ORDER BY part",
                {"buckets": str(buckets)}, path,
            )  # fmt: skip
        found.append((path, parts, run, runs))
    return found


def _run(bits: int, run: int, runs: int) -> tuple[int, int]:
    """The bytes [start, stop) of run ``run`` of a hash."""
    return bits // 8 * run // runs, bits // 8 * (run + 1) // runs


@dataclass(frozen=True)
class PairsItem:
    """One partition of buckets to compare."""

    buckets: Path
    part: int
    run: int  # whose bytes the partition is by
    runs: int
    how: Search


def find_pairs(item: PairsItem) -> Path:
    """Write the pairs (:data:`PAIRS`) of a partition; skipped if they are in the work folder."""
    out = item.buckets.with_name(f"near-pairs-{item.run:02d}-{item.part:07d}.parquet")
    if out.exists():
        return out
    only = [("part", "==", item.part)] if item.runs > 1 else None
    table = pq.read_table(item.buckets, columns=["hash", "area", "row"], filters=only)
    rows, areas = table["row"].to_numpy(), table["area"].to_numpy()
    codes = np.frombuffer(bytes.fromhex("".join(table["hash"].to_pylist())), np.uint8).reshape(
        len(rows), item.how.bits // 8
    )
    with atomic_file(out) as file, pq.ParquetWriter(file, PAIRS) as writer:
        for batch in _pairs(codes, rows, areas, item) if len(rows) else ():
            writer.write_batch(batch)
    return out


def _pairs(codes: Any, rows: Any, areas: Any, item: PairsItem) -> Iterator[pa.RecordBatch]:
    for one, other, distance in hamming_pairs(codes, item.how.radius):
        # A pair that agrees in several runs is found in each: the first one tells.
        here = np.ones(len(one), bool)
        for run in range(item.run + 1) if item.runs > 1 else ():
            start, stop = _run(item.how.bits, run, item.runs)
            same = (codes[one, start:stop] == codes[other, start:stop]).all(axis=1)
            here &= same if run == item.run else ~same
        one, other, distance = one[here], other[here], distance[here]
        first = (areas[one] > areas[other]) | ((areas[one] == areas[other]) & (rows[one] < rows[other]))
        earlier, later = np.where(first, one, other), np.where(first, other, one)
        columns = [rows[earlier], rows[later], distance.astype(np.int32), areas[earlier], areas[later]]
        yield pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=PAIRS)


def _walk(connection: Any, pairs: Sequence[str], ranked: Path, dropped: Path) -> None:
    """Write the rows of buckets that are dropped: those with an earlier neighbour that is kept."""
    count = int(pq.read_metadata(ranked).num_rows)
    with open(dropped.with_suffix(".bytes"), "w+b") as file:
        file.truncate(max(count, 1))
        with mmap.mmap(file.fileno(), 0) as gone:
            for batch in stream(connection, _WALK, {"pairs": list(pairs), "ranked": str(ranked)}):
                for later, earlier in zip(batch["later"].to_pylist(), batch["earlier"].to_pylist(), strict=True):
                    if not gone[earlier]:  # final: all pairs of an earlier bucket came before
                        gone[later] = 1
            with atomic_file(dropped) as out, pq.ParquetWriter(out, pa.schema([("row", pa.int64())])) as writer:
                query = 'SELECT "row", rank FROM read_parquet($ranked)'
                for batch in stream(connection, query, {"ranked": str(ranked)}):
                    flags = np.frombuffer(gone, np.uint8)[batch["rank"].to_numpy()].astype(bool)
                    writer.write_batch(batch.select(["row"]).filter(pa.array(flags)))
                    del flags
    dropped.with_suffix(".bytes").unlink()
