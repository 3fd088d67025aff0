"""Which rows repeat another: by SHA-256, then by PCA hash. Rows are changed in place; the first or largest is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from components.curate.pca_hash import Bytes, pairs_within

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
    neighbours: dict[int, list[int]] = defaultdict(list)
    for one, other in pairs_within(hashes, radius):
        neighbours[one].append(other)
        neighbours[other].append(one)
    rank = sorted(neighbours, key=lambda i: (-rows[i]["width"] * rows[i]["height"], i))
    kept: set[int] = set()
    for place in rank:
        originals = [other for other in neighbours[place] if other in kept]
        if originals:
            nearest = min(originals, key=lambda i: (int(np.bitwise_count(hashes[i] ^ hashes[place]).sum()), i))
            rows[place]["reason"], rows[place]["duplicate_of"] = "near-duplicate", rows[nearest]["key"]
        else:
            kept.add(place)
    return len(neighbours) - len(kept)


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
