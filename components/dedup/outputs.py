"""What dedup leaves in its output folder and in its report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.dedup.copy_graph.calibrate import Calibration
from components.dedup.copy_graph.edges import EdgeParts
from components.dedup.copy_graph.graph import size_histogram
from components.dedup.decisions.files import JoinFiles
from components.dedup.decisions.retrieve import QuerySetSummary
from components.dedup.described import Described
from components.dedup.pages import pictures
from components.dedup.pool.extract import described_keys
from components.dedup.pool.images import Pool
from components.dedup.resolve import CopyGraph
from components.dedup.thresholds import Thresholds
from components.descriptors.limits import seldom_found
from components.evaluation.sets.benchmarks import Benchmark
from components.images.samples import RGB
from components.storage import atomic_file
from components.tables.parts import PartWriter
from components.tables.schemas import KEYS
from components.tracking import Run

PAGE = 12  # groups on a page of pictures


def report(graph: CopyGraph, counts: NDArray[np.uint32], at: Thresholds) -> dict[str, Any]:
    """Entries of reports/dedup.json on the graph; ``counts`` [N] are the components' sizes."""
    return {
        "images": len(counts),
        "components": int(np.count_nonzero(counts)),
        "largest_component": int(counts.max()),
        "component_sizes": size_histogram(counts),
        "giants": [cut._asdict() for cut in graph.cuts],
        "threshold_self": round(at.within, 4),
        "threshold_relative": round(at.relative, 4),
        "calibration": _measured(at),
    } | ({"automatic": {k: round(v, 4) for k, v in at.automatic._asdict().items()}} if at.automatic else {})


def _measured(at: Thresholds) -> dict[str, Any]:
    if at.calibration is not None:
        return at.calibration.summary()
    return {"thresholds": "by the pool itself" if at.automatic else "given"}


def decided(reasons: Mapping[str, int], selected: int, summaries: list[QuerySetSummary]) -> dict[str, Any]:
    """Entries of the report on the decisions: how many rows have each reason, and how many are selected."""
    return {"selected": selected, "reasons": reasons, "retrieval": [line._asdict() for line in summaries]}


def blind_spots(kind: str, flip: bool) -> dict[str, Any]:
    """Entries of the report that say which edited copies the descriptor in use does not find."""
    seldom = seldom_found(kind, flip)
    if seldom is None:
        return {"seldom_found": f"not measured for {kind}; see docs/copy-detection.md"}
    return {"seldom_found": {edit: f"{share:g} % found" for edit, share in seldom.items()}}


def draw(
    connection: Any,
    folder: Path,
    pool: Pool,
    files: JoinFiles,
    benchmarks: tuple[Mapping[str, Benchmark], Literal["test", "all"]],
) -> dict[str, RGB]:
    """The pages of duplicate groups and of held-out matches, written to ``folder``; by their names in MLflow.

    ``benchmarks``: the sets, and which of their images are held out (``relative.against``).
    """
    from components.images.decode import encode_jpeg

    shown = {
        "duplicates": _duplicates(connection, pool, files),
        "held-out": _held_out(connection, pool, files, *benchmarks),
    }
    for name, page in shown.items():
        pictures.save(page, folder / f"{name}.jpg", encode_jpeg)
    return shown


def _duplicates(connection: Any, pool: Pool, files: JoinFiles) -> RGB:
    store = pool.store()
    groups = groups_of(connection, files.state, PAGE, 8)
    return pictures.page([[pool.rgb(row, store) for row in group] for _, group in groups])


def groups_of(connection: Any, state: Path, limit: int, wide: int) -> list[tuple[int, list[int]]]:
    """Size and up to ``wide`` rows of up to ``limit`` components of two and more, evenly spread over sizes.

    The kept row comes first.
    """
    counted = f"SELECT component, count(*) AS size FROM read_parquet('{state}') GROUP BY component HAVING count(*) > 1"
    (total,) = connection.execute(f"SELECT count(*) FROM ({counted})").fetchone()
    places = sorted({round(i) for i in np.linspace(0, total - 1, min(limit, total))})
    chosen = connection.execute(
        f"""SELECT component, size FROM (SELECT *, row_number() OVER (ORDER BY size DESC, component) - 1 AS place
            FROM ({counted})) WHERE place IN (SELECT unnest($places)) ORDER BY size DESC, component""",
        {"places": places},
    ).fetchall()
    found = []
    for component, size in chosen:
        rows = connection.execute(
            f"""SELECT "row" FROM read_parquet('{state}') WHERE component = $component
                ORDER BY "row" <> kept, "row" LIMIT {wide}""",
            {"component": component},
        ).fetchall()
        found.append((size, [row for (row,) in rows]))
    return found


def _held_out(
    connection: Any, pool: Pool, files: JoinFiles, sets: Mapping[str, Benchmark], against: Literal["test", "all"]
) -> RGB:
    store = pool.store()
    references = [(b, int(i)) for b in sets.values() for i in np.flatnonzero(b.kept_out(against))]
    # The least alike first: exact copies are no news, these are where the threshold decides.
    caught = connection.execute(
        f"""SELECT "row", reference FROM read_parquet('{files.leaks}') ORDER BY similarity, "row" LIMIT {PAGE * 4}"""
    ).fetchall()
    pairs = []
    for row, reference in caught:
        benchmark, number = references[reference]
        pairs.append([pool.rgb(row, store), benchmark.images.rgb(number)])
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


def take_files(folder: Path, described: Described, files: JoinFiles, edges: EdgeParts) -> None:
    """What was made on the way and is never written again, in ``folder`` as well."""
    for table in (files.manifest, files.decisions):
        (folder / table.name).mkdir()
        for part in table.iterdir():
            take(part, folder / table.name / part.name)
    take(described.rows.path, folder / "descriptors.npy")
    save_keys(folder / "keys", described_keys(described.folder))
    take(files.to_held_out, folder / "to-held-out.npy")
    (folder / "edges").mkdir()
    for part in edges.parts:
        take(part, folder / "edges" / part.name)
    take_index(described.folder / "index", folder / "index")
    if (weights := described.folder / "weights.safetensors").exists():
        take(weights, folder / "descriptor.safetensors")


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


def save_keys(path: Path, keys: Iterable[list[str]]) -> None:
    """``tables.KEYS``: the keys of the images that were described, in the order of the descriptors, chunk by chunk."""
    with PartWriter(path, KEYS) as writer:
        for chunk in keys:
            writer.write(pa.table([pa.array(chunk, pa.string())], schema=KEYS))


def save_json(path: Path, content: object) -> None:
    """``content`` as JSON, whole or not at all."""
    with atomic_file(path, "w") as file:
        json.dump(content, file, indent=1)
