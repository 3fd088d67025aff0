"""What dedup leaves in its output folder and in its report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from components.dedup import pictures
from components.dedup.calibrate import Calibration
from components.dedup.decide import Resolved, Selection
from components.dedup.extract import Pool
from components.dedup.graph import component_sizes, size_histogram
from components.dedup.reference import LeakMatches
from components.dedup.resolve import CopyGraph
from components.dedup.retrieve import QuerySetSummary
from components.dedup.thresholds import Thresholds
from components.descriptors.limits import seldom_found
from components.descriptors.views import RGB
from components.evaluation.benchmarks import Benchmark
from components.storage import atomic_file
from components.tracking import Run

PAGE = 12  # groups on a page of pictures


def manifest(pool: Pool, decisions: list[dict[str, object]], selection: Selection) -> pa.Table:
    """Rows of ``tables.MANIFEST``: those of the pool that are selected."""
    found = selection.retrieved
    selected = [row for row, decision in enumerate(decisions) if decision["status"] == "selected"]
    table = pool.rows.select(["key", "shard", "offset", "length", "width", "height"]).take(
        pa.array(selected, pa.int64())
    )
    weights = [1.0 if found is None else float(found.times[row]) for row in selected]
    sources: dict[int, list[str]] = {row: [] for row in selected}
    for name, rows in found.sources.items() if found is not None else ():
        for row in rows.tolist():
            sources[row].append(name)
    return (
        table.append_column("weight", pa.array(weights, pa.float32()))
        .append_column("reason", pa.array([decisions[row]["reason"] for row in selected], pa.string()))
        .append_column("sources", pa.array([sources[row] for row in selected], pa.list_(pa.string())))
    )


def report(
    decisions: list[dict[str, object]], graph: CopyGraph, at: Thresholds, summaries: list[QuerySetSummary]
) -> dict[str, Any]:
    """Entries of reports/dedup.json that follow from the decisions."""
    labels = graph.resolved.labels
    sizes = component_sizes(labels)
    reasons: dict[str, int] = {}
    for row in decisions:
        reasons[str(row["reason"])] = reasons.get(str(row["reason"]), 0) + 1
    return {
        "images": len(decisions),
        "selected": sum(row["status"] == "selected" for row in decisions),
        "reasons": dict(sorted(reasons.items())),
        "components": len(sizes),
        "largest_component": int(sizes[0]),
        "component_sizes": size_histogram(labels),
        "giants": [cut._asdict() for cut in graph.cuts],
        "retrieval": [line._asdict() for line in summaries],
        "threshold_self": round(at.within, 4),
        "threshold_relative": round(at.relative, 4),
        "calibration": _measured(at),
    } | ({"automatic": {k: round(v, 4) for k, v in at.automatic._asdict().items()}} if at.automatic else {})


def _measured(at: Thresholds) -> dict[str, Any]:
    if at.calibration is not None:
        return at.calibration.summary()
    return {"thresholds": "by the pool itself" if at.automatic else "given"}


def blind_spots(kind: str, flip: bool) -> dict[str, Any]:
    """Entries of the report that say which edited copies the descriptor in use does not find."""
    seldom = seldom_found(kind, flip)
    if seldom is None:
        return {"seldom_found": f"not measured for {kind}; see docs/copy-detection.md"}
    return {"seldom_found": {edit: f"{share:g} % found" for edit, share in seldom.items()}}


def draw(
    folder: Path, pool: Pool, graph: CopyGraph, sets: Mapping[str, Benchmark], against: Literal["test", "all"]
) -> dict[str, RGB]:
    """The pages of duplicate groups and of held-out matches, written to ``folder``; by their names in MLflow."""
    from components.images.decode import encode_jpeg

    shown = {"duplicates": _duplicates(pool, graph.resolved), "held-out": _held_out(pool, graph.leaks, sets, against)}
    for name, page in shown.items():
        pictures.save(page, folder / f"{name}.jpg", encode_jpeg)
    return shown


def _duplicates(pool: Pool, resolved: Resolved) -> RGB:
    store = pool.store()
    groups = pictures.duplicate_groups(resolved.labels, resolved.representative, PAGE)
    return pictures.page([[pool.rgb(row, store) for row in group[:8]] for group in groups])


def _held_out(pool: Pool, leaks: LeakMatches, sets: Mapping[str, Benchmark], against: Literal["test", "all"]) -> RGB:
    store = pool.store()
    references = [(b, int(i)) for b in sets.values() for i in np.flatnonzero(b.kept_out(against))]
    # The least alike first: exact copies are no news, these are where the threshold decides.
    caught = np.flatnonzero(leaks.leaks)
    caught = caught[np.argsort(leaks.similarity[caught], kind="stable")][: PAGE * 4]
    pairs = []
    for row in caught:
        benchmark, number = references[int(leaks.reference[row])]
        pairs.append([pool.rgb(int(row), store), benchmark.images.rgb(number)])
    return pictures.page([[picture for pair in pairs[i : i + 4] for picture in pair] for i in range(0, len(pairs), 4)])


def draw_calibration(calibration: Calibration | None, folder: Path) -> dict[str, RGB]:
    """The calibration's histograms, where there is one."""
    if calibration is None:
        return {}
    return {"calibration": pictures.draw_calibration(calibration, folder / "calibration.png")}


def record(recording: Run, report: Mapping[str, Any], out: Path, docs: Path) -> None:
    """Numbers, pages and the checks' ``docs`` to MLflow."""
    numbers = {f"dedup.{key}": float(value) for key, value in report.items() if isinstance(value, int | float)}
    recording.log_metrics(numbers | {f"dedup.{key}": float(value) for key, value in report["reasons"].items()})
    names = ["calibration.json", "sources.json", "duplicates.jpg", "held-out.jpg", "review.html", "calibration.png"]
    for name in names:
        if (out / name).exists():
            recording.log_artifacts(out / name, "dedup")
    recording.log_artifacts(docs, "gx")


def take(finished: Path, path: Path) -> None:
    """``finished`` at ``path`` as well, not copied where both are on one file system; it is never written again."""
    try:
        os.link(finished, path)
    except OSError:  # no hard links there
        shutil.copyfile(finished, path)


def take_index(finished: Path, folder: Path) -> None:
    """The merged index, for ``search``, where the pool was large enough for one."""
    if (finished / "merged/merged.json").exists():
        (folder / "merged").mkdir(parents=True)
        for name in ("index.json", "merged/merged.json", "merged/lists.faiss", "merged/lists.ivfdata"):
            take(finished / name, folder / name)


def save_keys(path: Path, keys: list[str]) -> None:
    """The keys of the images that were described, in the order of the descriptors."""
    import pyarrow.parquet as pq

    with atomic_file(path) as file:
        pq.write_table(pa.table({"key": pa.array(keys, pa.string())}), file)


def save_json(path: Path, content: object) -> None:
    """``content`` as JSON, whole or not at all."""
    with atomic_file(path, "w") as file:
        json.dump(content, file, indent=1)
