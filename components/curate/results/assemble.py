"""The last pass: index and audit, a part at a time, from what the passes before left in the work folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.curate.duplicates.facts import first_row
from components.curate.links.places import read_rows, spread
from components.curate.pixels.filters import FilterParams
from components.curate.pixels.safety import FaceParams, NsfwParams
from components.curate.results.contact_sheet import COLUMNS
from components.curate.results.reasons import REASONS
from components.storage import atomic_file
from components.tables.database import write_file
from components.tables.parts import write_part
from components.tables.schemas import AUDIT, INDEX

# What a copy's original became: it may itself be a near copy, and the safety models may have dropped that one.
_SETTLED = """
    WITH copy AS (
        SELECT "row", original, 'exact-duplicate' AS reason FROM read_parquet($exact)
        UNION ALL SELECT "row", original, 'near-duplicate' FROM read_parquet($near)
    ), last AS (
        SELECT copy."row", copy.reason, coalesce(further.original, copy.original) AS original
        FROM copy LEFT JOIN read_parquet($near) AS further ON copy.original = further."row"
    )
    SELECT last."row", last.original, fact.key AS original_key,
           CASE WHEN coalesce(fate.reason, '') = '' THEN last.reason ELSE fate.reason END AS reason,
           coalesce(fate.reason, '') AS fate
    FROM last
    JOIN read_parquet($facts) AS fact ON fact."row" = last.original
    LEFT JOIN (SELECT "row", reason FROM read_parquet($stored) WHERE reason <> '') AS fate ON fate."row" = last.original
    ORDER BY last."row"
"""


def resolve_copies(connection: Any, found: dict[str, Sequence[Path]], out: Path) -> None:
    """Write for every copy the kept row that it copies at last, or the reason for which that one was dropped.

    ``found``: the files "exact", "near", "facts" and "stored". A copy of an unsafe image shares its fate.
    """
    if not out.exists():
        write_file(connection, _SETTLED, {name: [str(path) for path in paths] for name, paths in found.items()}, out)


@dataclass(frozen=True)
class IndexItem:
    """One part of rows to put together."""

    judged: Path
    facts: Path
    settled: Path
    hashed: Path | None
    stored: tuple[Path, ...]
    nsfw: NsfwParams
    faces: FaceParams
    out: Path  # stem of the files written
    filters: tuple[FilterParams, ...] = ()


@dataclass
class Tally:
    """What one part of the index holds, for the report and the contact sheet."""

    index: Path
    audit: Path
    rows: int
    reasons: dict[str, int]  # of dropped rows
    faces: int = 0
    blurred: int = 0
    scored: int = 0
    plain: int = 0  # kept, no face
    shown: dict[str, list[int]] = field(default_factory=dict)  # first rows blurred ("") or dropped for a reason


def put_together(item: IndexItem) -> Tally:
    """Write a part of the index and of the audit; skipped if its tally is in the work folder."""
    done = item.out.with_suffix(".json")
    if done.exists():
        content = json.loads(done.read_text())
        return Tally(**content | {"index": Path(content["index"]), "audit": Path(content["audit"])})
    index = _index(item)
    reasons = Counter(reason for reason in index["reason"].to_pylist() if reason)
    if unknown := set(reasons) - {*REASONS, *(one.reason for one in item.filters)}:
        raise AssertionError(f"reasons outside the closed set: {sorted(unknown)}")
    audited = pa.concat_tables([audit(index, item.nsfw, item.faces), audit_filters(item.stored, item.filters)])
    tally = Tally(
        write_part(Path(f"{item.out}-index.parquet"), index, INDEX),
        write_part(Path(f"{item.out}-audit.parquet"), audited, AUDIT),
        len(index), dict(sorted(reasons.items())),
    )  # fmt: skip
    reason, faces = np.asarray(index["reason"].to_pylist(), object), index["faces"].to_numpy()
    tally.faces, tally.blurred = int(faces.sum()), int((faces > 0).sum())
    tally.scored = int(pc.sum(pc.equal(audited["check"], "nsfw")).as_py() or 0)
    tally.plain = int(plain(index).sum())
    first = first_row(pq.read_table(item.judged, columns=["row"]))
    for name in ("", *reasons):
        at = np.flatnonzero((reason == name) & ((faces > 0) | (name != "")))[:COLUMNS]
        tally.shown[name] = [int(row) + first for row in at]
    with atomic_file(done, "w") as file:
        json.dump(asdict(tally), file, default=str)
    return tally


def plain(index: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows are kept and have no face, bool ``[N]``."""
    kept = pc.and_(pc.equal(index["reason"], ""), pc.equal(index["faces"], 0))
    found: np.ndarray[Any, np.dtype[np.bool_]] = kept.to_numpy()
    return found


def _index(item: IndexItem) -> pa.Table:
    judged = pq.read_table(item.judged)
    facts = pq.read_table(item.facts)
    first, count = first_row(judged), len(judged)
    copies = spread(read_rows(item.settled, first, count), first, count)
    stored = [pq.read_table(path) for path in item.stored]
    kept = spread(pa.concat_tables(stored), first, count) if stored else {}
    hashed = spread(pq.read_table(item.hashed, columns=["row", "hash"]), first, count) if item.hashed else {}
    columns: dict[str, Any] = {name: judged[name] for name in judged.column_names if name in INDEX.names}
    columns |= {name: facts[name] for name in ("sha256", "format", "width", "height")}
    columns["pca_hash"] = _filled(hashed.get("hash"), "", pa.string(), count)
    blanks = {"nsfw": float("nan"), "faces": 0, "shard": "", "offset": -1, "length": 0, "stored_sha256": ""}
    for name, blank in blanks.items():
        columns[name] = _filled(kept.get(name), blank, INDEX.field(name).type, count)
    for name in ("face_boxes", "face_scores"):
        column = kept.get(name)
        values = column.to_pylist() if column is not None else [None] * count
        columns[name] = pa.array([value or [] for value in values], INDEX.field(name).type)
    # Dropped by the models, or since it could be decoded; else with its original; else as a copy; else before.
    of_copies = _filled(copies["reason"], "", pa.string(), count)
    of_stored = _filled(kept.get("reason"), "", pa.string(), count)
    reason = pc.if_else(pc.equal(of_stored, ""), of_copies, of_stored)
    columns["reason"] = pc.if_else(pc.equal(reason, ""), facts["reason"], reason)
    shared = pc.not_equal(_filled(copies["fate"], "", pa.string(), count), "")
    originals = _filled(copies["original_key"], "", pa.string(), count)
    columns["duplicate_of"] = pc.if_else(shared, "", originals)
    columns["status"] = pc.if_else(pc.equal(columns["reason"], ""), "kept", "dropped")
    forgotten = pc.and_(pc.equal(facts["reason"], "forgotten"), pc.equal(judged["reason"], ""))
    if pc.any(forgotten).as_py():
        heard = zip(judged["decisions"].to_pylist(), forgotten.to_pylist(), strict=True)
        columns["decisions"] = pa.array(
            [[*said, "forgotten: by its bytes"] if gone else said for said, gone in heard], pa.list_(pa.string())
        )
    return pa.table({name: columns[name] for name in INDEX.names}).cast(INDEX)


def audit_filters(stored: Sequence[Path], filters: Sequence[FilterParams]) -> pa.Table:
    """The audit table of the user's filters: one row a score."""
    rows: list[dict[str, Any]] = []
    for path in stored if filters else ():
        for row in pq.read_table(path, columns=["key", "filter_scores"]).to_pylist():
            for one, score in zip(filters, row["filter_scores"], strict=False):  # fewer, if one dropped the image
                rows.append(
                    {"key": row["key"], "check": one.reason, "model": one.call, "score": score, "box": None,
                     "threshold": one.threshold, "action": "dropped" if score > one.threshold else "kept"}
                )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=AUDIT)


def _filled(column: Any, blank: object, kind: pa.DataType, count: int) -> Any:
    """``column`` with ``blank`` for what is null; ``count`` blanks where there is no column."""
    value = pa.scalar(blank, kind)
    return pa.repeat(value, count) if column is None else pc.fill_null(column.cast(kind), value)


def audit(index: pa.Table, nsfw: NsfwParams, faces: FaceParams) -> pa.Table:
    """The audit table of rows of the index: one row a score and one a face found, in their order."""
    scored = pc.invert(pc.is_nan(index["nsfw"]))
    looked_at = index.filter(pc.or_(scored, pc.greater(pc.list_value_length(index["face_boxes"]), 0)))
    rows: list[dict[str, Any]] = []
    names = ("key", "reason", "nsfw", "face_boxes", "face_scores")
    for row in looked_at.select(names).to_pylist():
        if row["nsfw"] == row["nsfw"]:  # not NaN
            rows.append(
                {"key": row["key"], "check": "nsfw", "model": nsfw.model, "score": row["nsfw"], "box": None,
                 "threshold": nsfw.threshold, "action": "dropped" if row["reason"] == "nsfw" else "kept"}
            )  # fmt: skip
        for box, score in zip(row["face_boxes"], row["face_scores"], strict=True):
            rows.append(
                {"key": row["key"], "check": "face", "model": faces.model, "score": score, "box": box,
                 "threshold": faces.threshold, "action": "blurred"}
            )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=AUDIT)
