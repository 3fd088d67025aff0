"""The dedup stage: descriptors, copy graph, relative dedup, retrieval; the training manifest.

DINOv2 paper, section 3 and appendix A. Every kept image of the index ends in the table decisions with its reason.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.context import StageContext
from components.dedup import outputs as made
from components.dedup.checks import HeldOutDescriptors, check_components, check_descriptors, check_edges, check_manifest
from components.dedup.copy_graph.graph import component_counts
from components.dedup.copy_graph.recall import measure_recall
from components.dedup.decisions.decide import REASONS, decide
from components.dedup.decisions.files import JoinFiles, fresh_folder
from components.dedup.described import describe_pool, describe_set, held_out_images
from components.dedup.pages.review import Reviewed, sweep_thresholds, write_review
from components.dedup.pages.sweep import sweep
from components.dedup.params import DedupParams
from components.dedup.pool.extract import described_keys
from components.dedup.pool.images import Pool
from components.dedup.pool.scratch import FORMAT
from components.dedup.resolve import copy_graph
from components.dedup.select import select
from components.dedup.thresholds import Thresholds, thresholds
from components.errors import VitrailError, nearest
from components.evaluation.sets.benchmarks import BenchmarksFile, load_benchmark
from components.executor import kept_workers
from components.leftover import too_little
from components.lock import hold
from components.params import fingerprint
from components.quality import checked_together
from components.storage import atomic_dir, publish
from components.tables.database import database
from components.tracking import run as tracked

ADVISED = {  # cosines to begin with, between copies and with held-out images
    "sscd": "0.6 and 0.45 (the paper's)",
    "discriminant": "0.65 and 0.55 (measured on photographs)",
    "trained": "none were measured; look at the review",
    "thumbnail": "none were measured; look at the review",
    "plugin": "none were measured; look at the review",
}


@dataclass(frozen=True)
class DedupInputs:
    """What the dedup stage reads."""

    curated: Path  # the curate stage's output
    benchmarks: BenchmarksFile  # whose held-out images never reach training


def run(params: DedupParams, inputs: DedupInputs, outputs: Path, context: StageContext) -> dict[str, Any]:
    """Deduplicate the curated pool into ``outputs``; returns the report, also written to ``context.report``.

    Raises:
        VitrailError: bad input, a component over its largest share, a broken quality suite, or another run at work on
            ``outputs``.
    """
    began = time.monotonic()
    _check(params, inputs.benchmarks)
    pool = Pool.load(inputs.curated, context.storage)
    sets = {name: load_benchmark(name, given) for name, given in inputs.benchmarks.benchmarks.items()}
    digest = fingerprint(
        params.model_dump(mode="json", exclude={"executor", "memory", "least_kept"}),
        pool.digest,
        {name: benchmark.digest for name, benchmark in sets.items()},
        [FORMAT],
    )
    recorded = tracked("dedup", "dedup", context.tracking, params)
    with hold(outputs), recorded as recording, kept_workers(params.executor):
        recording.log_dataset("curated", digest[:16], str(inputs.curated), "dedup")
        work, views = outputs.parent / f".{outputs.name}.work", params.described_views()
        described = describe_pool(params.descriptor, params, pool, work, "descriptors", views)
        rows = described.rows.open()  # [N, R, dim], on disk
        of_sets = {name: describe_set(described, one, params, views) for name, one in sets.items()}
        at = thresholds(params, pool, described, sets, of_sets)
        held_out = held_out_images(params, sets, of_sets, described.descriptor.dim)
        files = JoinFiles(fresh_folder(work / "joins"))
        pool.write_rows(files.rows)
        graph = copy_graph(params, pool, described, held_out, at, files)
        docs = (context.report or outputs).parent / "gx/dedup"
        counts = component_counts(graph.labels)
        report = made.report(graph, counts, at) | {"held_out_images": len(held_out.keys)}
        with database(params.memory, work) as connection:  # before anything is chosen of what chained
            check_components(connection, files, counts, params.graph, at.within, docs)
        del counts
        selection, summaries = select(params, pool, described.rows, {n: (sets[n], of_sets[n]) for n in sets}, files)
        with database(params.memory, work) as connection:
            report |= made.decided(*decide(connection, files, held_out.keys, selection), summaries)
        report |= made.blind_spots(params.descriptor.kind, params.views.flip)
        report |= measure_recall(described.rows, graph.edges, params.graph.k, at.within, params.neighbours).report()
        said = _said(params, report, at)
        if not report["selected"]:
            raise VitrailError(f"{inputs.curated}: nothing is left; {said or report['reasons']}")
        if said:
            print(f"warning: {said}", file=sys.stderr, flush=True)
        with checked_together(), atomic_dir(outputs) as folder, database(params.memory, work) as connection:
            check_edges(graph.edges, len(pool), at.floor, params.checks, docs)
            keys = described_keys(described.folder)
            check_descriptors(pool, keys, rows[:, 0], described.descriptor, params.checks, docs)
            outcomes = sweep(
                graph.edges,
                np.load(files.to_held_out, mmap_mode="r", allow_pickle=False),
                sweep_thresholds(at.floor, (at.within, at.relative)),
                graph.labels,
                params.graph.giants,
                params.relative.within,
            )
            made.take_files(folder, described, files, graph.edges)
            kept_out = HeldOutDescriptors(held_out.rows, held_out.digests, at.relative)
            check_manifest(connection, folder, pool, rows, kept_out, (params.checks, docs))
            made.save_json(folder / "params.json", params.model_dump(mode="json"))
            made.save_json(folder / "calibration.json", report["calibration"])
            in_force = {"self": at.within, "relative": at.relative, "floor": at.floor}
            made.save_json(folder / "thresholds.json", in_force)
            made.save_json(folder / "sources.json", report["retrieval"])
            shown = made.draw_calibration(at.calibration, folder)
            shown |= made.draw(connection, folder, pool, files, (sets, params.relative.against))
            for name, page in shown.items():
                recording.log_image(page, name)
            reviewed = Reviewed(inputs.curated, context.storage, folder / "decisions", sets, views)
            write_review(
                connection, folder / "review.html", reviewed, outcomes, (at.within, at.relative), 2 * made.PAGE
            )
        publish(context.storage, outputs, ("manifest", "decisions"), "dedup", digest[:16])
        report["seconds"] = round(time.monotonic() - began, 1)
        if context.report is not None:
            made.save_json(context.report, report)
        made.record(recording, report, outputs, docs)
        shutil.rmtree(work)
    return report


def _said(params: DedupParams, report: Mapping[str, Any], at: Thresholds) -> str:
    """A line about what dropped the most where little is left, else ""."""
    dropped = {reason: count for reason, count in report["reasons"].items() if reason in REASONS}
    known = params.blamed(at.within, at.relative)
    return too_little("dedup", report["selected"], dropped, params.least_kept, known, "params/dedup.yaml")


def _check(params: DedupParams, benchmarks: BenchmarksFile) -> None:
    """Fail before minutes of work on what can be seen at once."""
    named = [*(params.retrieval.queries if params.retrieval else [])]
    named += [params.calibration.benchmark] if params.calibration else []
    for name in named:
        if name not in benchmarks.benchmarks:
            known = sorted(benchmarks.benchmarks)
            none = "" if known else "; without benchmarks set calibration and retrieval to null, and give thresholds"
            raise VitrailError(
                f"dedup names the benchmark {name!r}, not in benchmarks.yaml{nearest(name, known)}{none}"
            )
    if params.calibration and params.calibration.benchmark not in benchmarks.scored:
        raise VitrailError(f"calibration.benchmark {params.calibration.benchmark!r} has no labels; name one that has")
    if params.retrieval is not None:
        for name in params.retrieval.per_set:
            if name not in params.retrieval.queries:
                known = params.retrieval.queries
                raise VitrailError(f"retrieval.per_set names {name!r}, not in retrieval.queries{nearest(name, known)}")
        if params.balance is not None:
            raise VitrailError("dedup: retrieval chooses by queries and balance without; set one of them to null")
    if params.calibration is None and "calibrated" in (params.graph.threshold, params.relative.threshold):
        raise VitrailError(
            "calibration is null, so no threshold may be `calibrated`: set graph.threshold and relative.threshold to "
            f"auto, or to numbers; for descriptors of kind {params.descriptor.kind}: {ADVISED[params.descriptor.kind]}"
        )
    for line in _left_out(params, benchmarks):
        print(f"dedup: {line}", flush=True)


def _left_out(params: DedupParams, benchmarks: BenchmarksFile) -> list[str]:
    """A line for each part that has nothing to work with."""
    lines = []
    if not benchmarks.scored:
        lines.append("no labelled images in params/benchmarks.yaml: nothing is held out of training")
    if params.calibration is None:
        lines.append("no labels to calibrate with (calibration: null): thresholds as graph and relative say")
    if params.retrieval is None and params.balance is None:
        lines.append("no queries (retrieval: null): every image that is no copy is kept")
    return lines
