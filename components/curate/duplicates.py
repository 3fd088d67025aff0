"""Which rows repeat another: by SHA-256, then by PCA hash. Rows are changed in place; the first or largest is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from components.curate.pca_hash import Bytes, buckets
from components.neighbours import hamming_pairs

Row = dict[str, Any]


def mark_exact(rows: Iterable[Row]) -> int:
    """Drop every undropped row whose bytes an earlier undropped row has; returns how many."""
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


def settle(rows: Iterable[Row]) -> None:
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
