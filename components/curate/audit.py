"""The audit table of safety: every score and box, the threshold it was held against, and what was done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from components.curate.safety import FaceParams, NsfwParams

AUDIT = pa.schema(
    [
        ("key", pa.string()),
        ("check", pa.string()),  # "nsfw" or "face"
        ("model", pa.string()),
        ("score", pa.float32()),  # in [0, 1]
        ("threshold", pa.float32()),
        # x, y, width, height in pixels; null: the whole image. Parquet gives no null of a fixed-size list back
        ("box", pa.list_(pa.float32())),
        ("action", pa.string()),  # "kept", "dropped" or "blurred"
    ],
    metadata={"vitrail.table": "audit", "vitrail.version": "1"},
)


def audit(rows: Iterable[dict[str, Any]], nsfw: NsfwParams, faces: FaceParams) -> pa.Table:
    """The audit table of the index's ``rows``: one row a score and one a face found, in their order."""
    return pa.Table.from_pylist(list(_findings(rows, nsfw, faces)), schema=AUDIT)


def _findings(rows: Iterable[dict[str, Any]], nsfw: NsfwParams, faces: FaceParams) -> Iterator[dict[str, Any]]:
    for row in rows:
        if not math.isnan(row["nsfw"]):
            yield {
                "key": row["key"], "check": "nsfw", "model": nsfw.model, "score": row["nsfw"],
                "threshold": nsfw.threshold, "box": None, "action": "dropped" if row["reason"] == "nsfw" else "kept",
            }  # fmt: skip
        for box, score in zip(row["face_boxes"], row["face_scores"], strict=True):
            yield {
                "key": row["key"], "check": "face", "model": faces.model, "score": score,
                "threshold": faces.threshold, "box": box, "action": "blurred",
            }  # fmt: skip


def audit_counts(table: pa.Table) -> dict[str, int | float]:
    """Numbers for the report: images scored, and the median face's longer side in pixels (0: no face)."""
    boxes = [box for box in table["box"].to_pylist() if box is not None]
    return {
        "nsfw-scored": sum(check == "nsfw" for check in table["check"].to_pylist()),
        "face-median-side": round(float(np.median([max(box[2], box[3]) for box in boxes])), 1) if boxes else 0.0,
    }
