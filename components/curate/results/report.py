"""What a curation came to, in numbers and in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.curate.results.assemble import Tally
from components.images.decode import RGB
from components.storage import atomic_file
from components.tables.database import stream


def summary(
    tallies: Sequence[Tally], counts: Counter[str], exact: int, shards: dict[str, dict[str, object]], hashed: bool
) -> dict[str, Any]:
    """Counts for ``reports/curate.json``."""
    reasons: Counter[str] = Counter()
    for tally in tallies:
        reasons.update(tally.reasons)
    rows, dropped = sum(tally.rows for tally in tallies), sum(reasons.values())
    return {
        "links": rows,
        "kept": rows - dropped,
        "dropped": dropped,
        "reasons": dict(sorted(reasons.items())),
        "faces": sum(tally.faces for tally in tallies),
        "blurred": sum(tally.blurred for tally in tallies),
        "exact-duplicates": exact,
        "pca-hash": hashed,
        "shards": len(shards),
        "shard-bytes": sum(int(str(shard["bytes"])) for shard in shards.values()),
        **dict(sorted(counts.items())),
        "nsfw-scored": sum(tally.scored for tally in tallies),
    }


def median_face(connection: Any, audits: Sequence[Path]) -> float:
    """The median face's longer side, pixels; 0 where there is no face."""
    query = """SELECT greatest(box[3], box[4]) AS side, count(*) AS faces FROM read_parquet($audits)
               WHERE box IS NOT NULL GROUP BY side ORDER BY side"""
    found = stream(connection, query, {"audits": [str(path) for path in audits]}).read_all()  # a row a size
    ends = np.cumsum(found["faces"].to_numpy())
    if not len(ends):
        return 0.0
    sides, count = found["side"].to_numpy(), int(ends[-1])
    middle = [sides[np.searchsorted(ends, rank, side="right")] for rank in ((count - 1) // 2, count // 2)]
    return round(float(np.mean(middle)), 1)


def listed(reasons: dict[str, int]) -> str:
    """``reasons`` with their counts, for one line of text."""
    return ", ".join(f"{reason} {count}" for reason, count in reasons.items())


def save_picture(sheet: RGB, path: Path) -> None:
    """Write ``sheet`` as PNG; it appears whole or not at all."""
    from PIL import Image

    with atomic_file(path) as file:
        Image.fromarray(sheet).save(file, "PNG")
