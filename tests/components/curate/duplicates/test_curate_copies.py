"""Exact and near copies and what becomes of them: joins on disk against a loop over all rows, which is the rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curate.duplicates.facts import FACTS, exact_copies
from components.curate.duplicates.near import HASHED, Search, near_copies
from components.curate.duplicates.pca_hash import Bytes, buckets
from components.curate.results.assemble import resolve_copies as settle_on_disk
from components.executor import ExecutorParams
from components.neighbours import hamming_pairs
from components.tables.database import MemoryParams, database

SMALL = MemoryParams(megabytes=64, threads=1)
Row = dict[str, Any]


def mark_exact(rows: Iterable[Row]) -> int:
    """The rule for exact copies."""
    first: dict[str, str] = {}
    dropped = 0
    for row in rows:
        if row["reason"]:
            continue
        original = first.setdefault(row["sha256"], row["key"])
        if original != row["key"]:
            row["reason"], row["duplicate_of"] = "exact-duplicate", original
            dropped += 1
    return dropped


def mark_near(rows: list[Row], hashes: Bytes, radius: int) -> int:
    """Drop rows within ``radius`` bits of a kept one; ``hashes`` ``[N, B]`` belong to ``rows``. Returns how many.

    Larger images are kept before smaller, then earlier before later. A row is dropped only for a row that is itself
    kept, so likeness never chains from image to image.
    """
    distinct, bucket = buckets(hashes)
    # Of a bucket one image at most is kept, so buckets are compared, however many images they hold.
    near: dict[int, list[tuple[int, int]]] = defaultdict(list)  # bucket -> (distance, other bucket)
    for ones, others, distances in hamming_pairs(distinct, radius):
        for one, other, distance in zip(ones.tolist(), others.tolist(), distances.tolist(), strict=True):
            near[one].append((distance, other))
            near[other].append((distance, one))
    kept: dict[int, int] = {}  # bucket -> its kept row
    for place in sorted(range(len(rows)), key=lambda i: (-rows[i]["width"] * rows[i]["height"], i)):
        own = int(bucket[place])
        originals = [(distance, kept[other]) for distance, other in [(0, own), *near.get(own, ())] if other in kept]
        if originals:
            rows[place]["reason"], rows[place]["duplicate_of"] = "near-duplicate", rows[min(originals)[1]]["key"]
        else:
            kept[own] = place
    return len(rows) - len(kept)


def resolve_copies(rows: Iterable[Row]) -> None:
    """Make every ``duplicate_of`` name a kept row: chains are followed, copies of an unsafe image share its fate."""
    rows = list(rows)
    by_key = {row["key"]: row for row in rows}
    for row in rows:
        target = row
        while target["duplicate_of"]:
            target = by_key[target["duplicate_of"]]
        if target is row:
            continue
        if target["reason"]:
            row["reason"], row["duplicate_of"] = target["reason"], ""
        else:
            row["duplicate_of"] = target["key"]


def row(key: str, side: int = 10, sha256: str = "") -> Row:
    return {"key": key, "width": side, "height": side, "sha256": sha256 or key, "reason": "", "duplicate_of": ""}


def near_on_disk(folder: Path, rows: list[Row], hashes: Bytes, radius: int, partition: int = 1 << 17) -> dict[int, int]:
    """Row -> original; rows are numbered with gaps, in two files."""
    table = pa.table(
        {"row": [3 * i for i in range(len(rows))], "hash": [code.tobytes().hex() for code in hashes],
         "area": [one["width"] * one["height"] for one in rows]}, HASHED,
    )  # fmt: skip
    folder.mkdir()
    files = [folder / "hashed-0.parquet", folder / "hashed-1.parquet"]
    for path, part in zip(files, (table.slice(0, len(rows) // 2), table.slice(len(rows) // 2)), strict=True):
        pq.write_table(part, path)
    how = Search(8 * hashes.shape[1], radius, SMALL, ExecutorParams(), partition)
    near_copies(files, folder / "near.parquet", how)
    found = pq.read_table(folder / "near.parquet").to_pylist()
    assert [one["row"] for one in found] == sorted(one["row"] for one in found)
    return {one["row"] // 3: one["original"] // 3 for one in found}


def by_loop(rows: list[Row], hashes: Bytes, radius: int) -> dict[int, int]:
    rows = [one | {"key": str(i)} for i, one in enumerate(rows)]
    mark_near(rows, hashes, radius)
    return {i: int(one["duplicate_of"]) for i, one in enumerate(rows) if one["duplicate_of"]}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(0, 5), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 8]))
@pytest.mark.parametrize("partition", [1 << 17, 7])
def test_near_copies_on_disk_are_those_of_the_loop(
    tmp_path_factory: pytest.TempPathFactory, partition: int, count: int, radius: int, seed: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 1 << int(rng.integers(1, 9)), (count, width), dtype=np.uint8)
    half = count // 2
    hashes[half:] = hashes[: count - half] ^ (1 << rng.integers(0, 8, (count - half, width), dtype=np.uint8))
    rows = [row(str(i), int(rng.integers(1, 4))) for i in range(count)]
    found = near_on_disk(tmp_path_factory.mktemp("near") / "work", rows, hashes, radius, partition)
    assert found == by_loop(rows, hashes, radius)


def test_many_hashes_in_many_partitions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (6000, 32), dtype=np.uint8)
    for i in range(3000, 6000):  # copies of copies, with 0 to 8 flipped bits, spread
        hashes[i] = hashes[i - int(rng.integers(1, 3000))]
        for bit in rng.choice(256, i % 9, replace=False):
            hashes[i, bit // 8] ^= 1 << (bit % 8)
    rows = [row(str(i), int(rng.integers(1, 4))) for i in range(len(hashes))]
    for radius in (0, 3, 7):
        found = near_on_disk(tmp_path / str(radius), rows, hashes, radius, partition=500)
        assert found == by_loop(rows, hashes, radius)
        assert len(found) > 300


def test_a_bucket_of_very_many_equal_hashes_costs_no_pairs(tmp_path: Path) -> None:
    hashes = np.zeros((20_000, 32), np.uint8)
    hashes[-1, 0] = 1
    found = near_on_disk(tmp_path / "work", [row(str(i)) for i in range(len(hashes))], hashes, 3)
    assert found == dict.fromkeys(range(1, 20_000), 0)


def test_near_duplicates_do_not_chain_and_the_largest_is_kept(tmp_path: Path) -> None:
    hashes = np.array([[0b0000], [0b0011], [0b1111], [0xF0]], np.uint8)  # a-b and b-c within 2, a-c not
    rows = [row("a"), row("b", 30), row("c", 20), row("far")]
    assert near_on_disk(tmp_path / "1", rows, hashes, 2) == {0: 1, 2: 1}
    rows = [row("a", 30), row("b", 20), row("c", 10), row("far")]
    assert near_on_disk(tmp_path / "2", rows, hashes, 2) == {1: 0}  # c is near b alone, and b is not kept


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "", "", "too-small"])), max_size=20),
       st.integers(0, 2**32 - 1))  # fmt: skip
def test_exact_copies_and_settling_are_those_of_the_loop(
    tmp_path_factory: pytest.TempPathFactory, bytes_of: list[tuple[str, str]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("settled")
    rng = np.random.default_rng(seed)
    rows = [row(f"key{i}", sha256=digest) | {"reason": reason} for i, (digest, reason) in enumerate(bytes_of)]
    facts = pa.table({"row": range(len(rows)), **{n: [one[n] for one in rows] for n in ("key", "reason", "sha256")}})
    for one in list(FACTS)[4:]:
        facts = facts.append_column(one.name, pa.nulls(len(rows), one.type))
    pq.write_table(facts.cast(FACTS), folder / "facts.parquet")
    count = mark_exact(rows)
    # Some of those left repeat another that is left; some of the rest are found unsafe.
    left = [i for i, one in enumerate(rows) if not one["reason"]]
    firsts = left[: len(left) // 2]
    near = {i: firsts[int(rng.integers(len(firsts)))] for i in left[len(firsts) :] if firsts and rng.random() < 0.5}
    unsafe = [i for i in left if i not in near and rng.random() < 0.3]
    pq.write_table(pa.table({"row": sorted(near), "original": [near[i] for i in sorted(near)]}, pa.schema(
        [("row", pa.int64()), ("original", pa.int64())])), folder / "near.parquet")  # fmt: skip
    stored = [i for i in left if i not in near]
    pq.write_table(pa.table({"row": pa.array(stored, pa.int64()), "reason": pa.array(
        ["nsfw" if i in unsafe else "" for i in stored], pa.string())}), folder / "stored.parquet")  # fmt: skip
    with database(SMALL, folder) as connection:
        assert exact_copies(connection, [folder / "facts.parquet"], folder / "exact.parquet") == count
        files = {name: [folder / f"{name}.parquet"] for name in ("exact", "near", "facts", "stored")}
        settle_on_disk(connection, files, folder / "settled.parquet")
    for i, original in near.items():
        rows[i].update(reason="near-duplicate", duplicate_of=f"key{original}")
    for i in unsafe:
        rows[i]["reason"] = "nsfw"
    copies = [i for i, one in enumerate(rows) if one["duplicate_of"]]
    resolve_copies(rows)
    found = pq.read_table(folder / "settled.parquet").to_pylist()
    assert [one["row"] for one in found] == copies
    for one in found:
        expected = rows[one["row"]]
        assert one["reason"] == expected["reason"]
        assert (one["original_key"] if not one["fate"] else "") == expected["duplicate_of"]
