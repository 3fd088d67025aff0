"""What a curation came to, in numbers and in a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from components.curate.gather import Gathered
from components.curate.reasons import REASONS
from components.images.decode import RGB
from components.storage import atomic_file


def summary(
    found: Gathered, exact: int, shards: dict[str, dict[str, object]], hashed: bool, seconds: float
) -> dict[str, Any]:
    """Counts for ``reports/curate.json``."""
    reasons = Counter(row["reason"] for row in found.rows if row["reason"])
    unknown = set(reasons) - set(REASONS)
    if unknown:
        raise AssertionError(f"reasons outside the closed set: {sorted(unknown)}")
    return {
        "links": len(found.rows),
        "kept": sum(not row["reason"] for row in found.rows),
        "dropped": sum(reasons.values()),
        "reasons": dict(sorted(reasons.items())),
        "faces": sum(row["faces"] for row in found.rows),
        "blurred": sum(row["faces"] > 0 for row in found.rows),
        "exact-duplicates": exact,
        "pca-hash": hashed,
        "shards": len(shards),
        "shard-bytes": sum(int(str(shard["bytes"])) for shard in shards.values()),
        **dict(sorted(found.counts.items())),
        "seconds": round(seconds, 1),
    }


def listed(reasons: dict[str, int]) -> str:
    """``reasons`` with their counts, for one line of text."""
    return ", ".join(f"{reason} {count}" for reason, count in reasons.items())


def save_picture(sheet: RGB, path: Path) -> None:
    """Write ``sheet`` as PNG; it appears whole or not at all."""
    from PIL import Image

    with atomic_file(path) as file:
        Image.fromarray(sheet).save(file, "PNG")
