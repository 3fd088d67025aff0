"""The dedup stage: descriptors, copy graph, relative dedup, retrieval; the training manifest.

DINOv2 paper, section 3 and appendix A. Every kept image of the index ends in decisions with its reason.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.context import StageContext
from components.dedup import outputs as made
from components.dedup.checks import (
    HeldOut,
    check_components,
    check_descriptors,
    check_edges,
    check_manifest,
)
from components.dedup.decide import decisions
from components.dedup.described import describe_pool, describe_set, held_out_images
from components.dedup.extract import Pool, described_keys
from components.dedup.params import DedupParams
from components.dedup.recall import measure_recall
from components.dedup.resolve import copy_graph
from components.dedup.review import Reviewed, sweep_thresholds, write_review
from components.dedup.scratch import FORMAT
from components.dedup.select import select
from components.dedup.sweep import sweep
from components.dedup.thresholds import thresholds
from components.descriptors.sscd import SscdParams
from components.errors import VitrailError, nearest
from components.evaluation.benchmarks import BenchmarksFile, load_benchmark
from components.executor import kept_workers
from components.lock import hold
from components.params import fingerprint
from components.storage import atomic_dir, publish
from components.tables.parts import write_table
from components.tables.schemas import DECISIONS, MANIFEST
from components.tracking import run as tracked


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
        params.model_dump(mode="json", exclude={"executor"}),
        pool.rows["stored_sha256"].to_pylist(),
        {name: benchmark.digest for name, benchmark in sets.items()},
        [FORMAT],
    )
    recorded = tracked("dedup", "dedup", context.tracking, params)
    with hold(outputs), recorded as recording, kept_workers(params.executor):
        recording.log_dataset("curated", digest[:16], str(inputs.curated), "dedup")
        work, views = outputs.parent / f".{outputs.name}.work", params.described_views()
        described = describe_pool(params.descriptor, params, pool, work, "descriptors", views)
        rows = described.rows.open()  # [N, R, dim], on disk
        of_sets = {name: describe_set(described.descriptor, one, views) for name, one in sets.items()}
        at = thresholds(params, pool, described, sets, of_sets)
        held_out = held_out_images(params, sets, of_sets, described.descriptor.dim)
        graph = copy_graph(params, pool, described, held_out, at, work)
        docs = (context.report or outputs).parent / "gx/dedup"
        # Before anything is chosen of what chained.
        check_components(graph.resolved, params.graph.largest_share, params.graph.largest_least, at.within, docs)
        benchmarks = {name: (one, of_sets[name]) for name, one in sets.items()}
        selection, summaries = select(params, pool, graph.resolved.survives, rows[:, 0], benchmarks, work)
        decided = decisions(pool.keys, graph.resolved, graph.leaks, held_out.keys, graph.deciding, selection)
        report = made.report(decided, graph, at, summaries) | {"held_out_images": len(held_out.keys)}
        report |= made.blind_spots(params.descriptor.kind, params.views.flip)
        report |= measure_recall(described.rows, graph.edges, params.graph.k, at.within, params.neighbours).report()
        manifest = made.manifest(pool, decided, selection)
        if not len(manifest):
            raise VitrailError(
                f"{inputs.curated}: dedup dropped all {len(pool)} images ({report['reasons']}); see thresholds"
            )
        check_edges(graph.edges, len(pool), at.floor, params.checks, docs)
        keys = described_keys(described.folder)
        check_descriptors(pool, keys, rows[:, 0], described.descriptor, params.checks, docs)
        outcomes = sweep(
            len(pool),
            graph.edges,
            graph.leaks.similarity,
            sweep_thresholds(at.floor, (at.within, at.relative)),
            graph.resolved.labels,
            params.graph.giants,
            params.relative.within,
        )
        with atomic_dir(outputs) as folder:
            write_table(folder / "manifest", manifest, MANIFEST)
            write_table(folder / "decisions", decided, DECISIONS)
            kept_out = HeldOut(held_out.rows, held_out.digests, at.relative)
            check_manifest(folder, pool, rows, kept_out, params.checks, docs)
            made.take(described.rows.path, folder / "descriptors.npy")
            made.save_keys(folder / "keys.parquet", keys)
            np.save(folder / "to-held-out.npy", graph.leaks.similarity, allow_pickle=False)
            (folder / "edges").mkdir()
            for part in graph.edges.parts:
                made.take(part, folder / "edges" / part.name)
            made.take_index(described.folder / "index", folder / "index")
            made.save_json(folder / "params.json", params.model_dump(mode="json"))
            if not isinstance(params.descriptor, SscdParams):
                shutil.copyfile(described.folder / "weights.safetensors", folder / "descriptor.safetensors")
            made.save_json(folder / "calibration.json", report["calibration"])
            in_force = {"self": at.within, "relative": at.relative, "floor": at.floor}
            made.save_json(folder / "thresholds.json", in_force)
            made.save_json(folder / "sources.json", [line._asdict() for line in summaries])
            shown = made.draw_calibration(at.calibration, folder)
            shown |= made.draw(folder, pool, graph, sets, params.relative.against)
            for name, page in shown.items():
                recording.log_image(page, name)
            reviewed = Reviewed(pool, decided, sets, views)
            write_review(folder / "review.html", reviewed, outcomes, (at.within, at.relative), 2 * made.PAGE)
        publish(context.storage, outputs, ("manifest", "decisions"), "dedup", digest[:16])
        report["seconds"] = round(time.monotonic() - began, 1)
        if context.report is not None:
            made.save_json(context.report, report)
        made.record(recording, report, outputs, docs)
        shutil.rmtree(work)
    return report


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
        raise VitrailError("calibration is null, so graph.threshold and relative.threshold must be numbers (0.6, 0.45)")
    if not benchmarks.benchmarks:
        print(
            "dedup: warning: benchmarks.yaml names no set, so no image is kept out of training as a copy of a held-out "
            "one",
            flush=True,
        )
