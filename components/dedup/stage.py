"""The dedup stage: descriptors, copy graph, relative dedup, retrieval; the training manifest.

DINOv2 paper, section 3 and appendix A. Every kept image of the index ends in decisions with its reason.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.context import StageContext
from components.dedup import decide, pictures
from components.dedup.balance import balance
from components.dedup.calibrate import (
    Calibration,
    calibrate,
    copy_similarities,
    nearest_differing,
)
from components.dedup.checks import (
    check_components,
    check_descriptors,
    check_edges,
    check_manifest,
)
from components.dedup.copygraph import ranges, search_edges
from components.dedup.edges import EdgeParts
from components.dedup.extract import Pool, check_described, describe, describe_pictures, described_keys, gathered
from components.dedup.fit import learning_pictures
from components.dedup.giants import Cut, cut_giants
from components.dedup.graph import component_sizes, components, size_histogram
from components.dedup.keep import scores
from components.dedup.params import DedupParams
from components.dedup.recall import measure_recall
from components.dedup.reference import Touch, dropped_components, identical_rows, touching_parts, with_identical
from components.dedup.retrieve import Brought, Retrieved, retrieve
from components.dedup.review import sweep_thresholds, write_review
from components.dedup.scratch import FORMAT, described_digest, scratch_folder
from components.dedup.sweep import sweep
from components.descriptors.kinds import (
    Descriptor,
    DescriptorParams,
    TrainedParams,
    adopt,
    learn,
    load_descriptor,
)
from components.descriptors.rows import Rows
from components.descriptors.sscd import SscdParams
from components.errors import VitrailError, nearest
from components.evaluation.benchmarks import Benchmark, BenchmarksFile, load_benchmark
from components.executor import ExecutorParams, kept_workers
from components.lock import hold
from components.neighbours import NeighbourParams
from components.params import fingerprint
from components.storage import atomic_dir, atomic_file, publish
from components.tables.parts import write_table
from components.tables.schemas import DECISIONS, MANIFEST
from components.tracking import Run
from components.tracking import run as tracked

PAGE = 12  # groups on a page of pictures


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
    curated, benchmarks, out, storage = inputs.curated, inputs.benchmarks, outputs, context.storage
    began = time.monotonic()
    _check(params, benchmarks)
    pool = Pool.load(curated, storage)
    sets = {name: load_benchmark(name, given) for name, given in benchmarks.benchmarks.items()}
    digest = fingerprint(
        params.model_dump(mode="json", exclude={"executor"}),
        pool.rows["stored_sha256"].to_pylist(),
        {name: benchmark.digest for name, benchmark in sets.items()},
        [FORMAT],
    )
    recorded = tracked("dedup", "dedup", context.tracking, params)
    with hold(out), recorded as recording, kept_workers(params.executor):
        recording.log_dataset("curated", digest[:16], str(curated), "dedup")
        work = out.parent / f".{out.name}.work"
        described_in, descriptor, rows_file = _describe_pool(
            params.descriptor, params, pool, work, "descriptors", params.windows
        )
        pieces = rows_file.open()  # [N, R, dim] on disk: whole images, then their windows
        rows = pieces[:, 0]
        described = {name: _describe_set(descriptor, one, params.windows) for name, one in sets.items()}
        calibration = _calibrate(params, pool, pieces, descriptor, sets, described)
        at_self, at_relative = _thresholds(params, calibration)

        held_out, held_keys = _held_out(params, sets, described, descriptor.dim)
        held_digests = _held_digests(params, sets)
        identical = identical_rows(pool.rows, held_digests)
        copies, touch, edges, cuts = _copies(
            params, pool, rows_file, described_in, held_out, identical, at_self, at_relative, work
        )
        docs = (context.report or out).parent / "gx/dedup"
        # Before anything is chosen of what chained.
        check_components(copies, params.graph.largest_share, params.graph.largest_least, at_self, docs)
        found, queries, reasons, brought = _retrieve(params, pool, rows, sets, described, copies, work)
        sampled = _balance(params, rows, copies, work)
        decisions = decide.decisions(
            pool.keys, rows, copies, touch, held_keys, found, queries, reasons, sampled, identical >= 0
        )
        report = _report(decisions, copies, (at_self, at_relative), calibration, cuts, brought, len(held_keys))
        report |= measure_recall(rows_file, edges, params.graph.k, at_self, params.neighbours).report()
        manifest = _manifest(pool, decisions, found)
        if not len(manifest):
            raise VitrailError(f"{curated}: dedup dropped all {len(pool)} images ({report['reasons']}); see thresholds")
        floor = _floor(params, at_self, at_relative)
        check_edges(edges, len(pool), floor, params.checks, docs)
        keys = described_keys(described_in)
        check_descriptors(pool, keys, rows, descriptor, params.checks, docs)
        outcomes = sweep(
            len(pool),
            edges,
            touch.similarity,
            sweep_thresholds(floor, (at_self, at_relative)),
            copies.labels,
            params.graph.giants,
            params.relative.within,
        )
        with atomic_dir(out) as folder:
            write_table(folder / "manifest", manifest, MANIFEST)
            write_table(folder / "decisions", decisions, DECISIONS)
            check_manifest(folder, pool, pieces, held_out, held_digests, at_relative, params.checks, docs)
            _take(rows_file.path, folder / "descriptors.npy")
            _save_keys(folder / "keys.parquet", keys)
            np.save(folder / "to-held-out.npy", touch.similarity, allow_pickle=False)
            (folder / "edges").mkdir()
            for part in edges.parts:
                _take(part, folder / "edges" / part.name)
            _take_index(described_in / "index", folder / "index")
            _save_json(folder / "params.json", params.model_dump(mode="json"))
            if not isinstance(params.descriptor, SscdParams):
                shutil.copyfile(described_in / "weights.safetensors", folder / "descriptor.safetensors")
            _save_json(folder / "calibration.json", report["calibration"])
            _save_json(folder / "thresholds.json", {"self": at_self, "relative": at_relative, "floor": floor})
            _save_json(folder / "sources.json", [line._asdict() for line in brought])
            _show(folder, pool, copies, touch, sets, params.relative.against, calibration, recording)
            write_review(folder / "review.html", pool, decisions, sets, outcomes, (at_self, at_relative), 2 * PAGE)
        publish(storage, out, ("manifest", "decisions"), "dedup", digest[:16])
        report["seconds"] = round(time.monotonic() - began, 1)
        if context.report is not None:
            _save_json(context.report, report)
        _record(recording, report, out, docs, calibrated=calibration is not None)
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


def _describe_pool(
    given: DescriptorParams,
    params: DedupParams,
    pool: Pool,
    parent: Path,
    kind: str,
    grid: Sequence[tuple[float, int]] = (),
) -> tuple[Path, Descriptor, Rows]:
    """The descriptor, learned from the pool where its kind asks for that, and the pool's rows [N, R, dim] on disk.

    Both stand in the folder returned first, which is below ``parent`` and named by all that they depend on.
    """
    images = [pool.rows[name].to_pylist() for name in ("key", "stored_sha256")]
    folder = scratch_folder(parent, kind, described_digest(given, grid, params.chunk, images, pool.storage))
    weights = folder / "weights.safetensors"
    if not isinstance(given, SscdParams) and not weights.exists():
        if isinstance(given, TrainedParams) and given.weights:
            adopt(given, weights)
        else:
            learn(given, learning_pictures(given, pool, folder, params.executor, params.chunk), weights)
    rows = describe(pool, given, weights, folder, params.executor, params.chunk, grid)
    return folder, load_descriptor(given, weights, pool.storage), rows


def _describe_set(
    descriptor: Descriptor,
    one: Benchmark,
    grid: Sequence[tuple[float, int]] = (),
    which: NDArray[np.int64] | None = None,
) -> NDArray[np.float16]:
    """Descriptors [n, R, dim] of a benchmark's images, or of its rows ``which``."""
    chosen = np.arange(len(one.keys)) if which is None else which
    rows = describe_pictures(descriptor, (one.images.rgb(int(row)) for row in chosen), grid)
    check_described(rows, lambda i: f"benchmark image {one.keys[chosen[i]]}")
    return rows


def _calibrate(
    params: DedupParams,
    pool: Pool,
    rows: NDArray[np.float16],
    descriptor: Descriptor,
    sets: Mapping[str, Benchmark],
    described: Mapping[str, NDArray[np.float16]],
) -> Calibration | None:
    if params.calibration is None:
        return None
    how = params.calibration
    generator = np.random.default_rng(how.seed)
    chosen = np.sort(generator.choice(len(pool), min(how.copies, len(pool)), replace=False))
    store = pool.store()
    copies = copy_similarities([pool.rgb(int(i), store) for i in chosen], rows[chosen], descriptor, generator)
    benchmark = sets[how.benchmark]
    training = np.flatnonzero(~benchmark.test)
    labels = {task: values[training] for task, values in benchmark.labels.items()}
    differing, others = nearest_differing(described[how.benchmark][training], labels, training, how.apart)
    calibration = calibrate(copies, differing, others, how)
    print(calibration.table(), flush=True)
    return calibration


def _thresholds(params: DedupParams, calibration: Calibration | None) -> tuple[float, float]:
    at_self, at_relative = params.graph.threshold, params.relative.threshold
    if calibration is not None:
        at_self = calibration.threshold_self if at_self == "calibrated" else at_self
        at_relative = calibration.threshold_relative if at_relative == "calibrated" else at_relative
    return float(at_self), float(at_relative)


def _floor(params: DedupParams, at_self: float, at_relative: float) -> float:
    return min(at_self, at_relative, params.graph.edges_from)


def _held_out(
    params: DedupParams, sets: Mapping[str, Benchmark], described: Mapping[str, NDArray[np.float16]], dim: int
) -> tuple[NDArray[np.float16], list[str]]:
    """Descriptors [M, R, dim] and keys of the images that must not be trained on; M is 0 without benchmarks."""
    asked = {name: one.kept_out(params.relative.against) for name, one in sets.items()}
    rows = [described[name][asked[name]] for name in sets]
    keys = [one.keys[i] for name, one in sets.items() for i in np.flatnonzero(asked[name])]
    return np.concatenate(rows) if rows else np.empty((0, 1, dim), np.float16), keys


def _held_digests(params: DedupParams, sets: Mapping[str, Benchmark]) -> list[str]:
    """SHA-256 (hex) of the files of the images that must not be trained on, in the order of :func:`_held_out`."""
    asked = {name: np.flatnonzero(one.kept_out(params.relative.against)) for name, one in sets.items()}
    return [sets[name].digests[row] for name, rows in asked.items() for row in rows]


def _copies(
    params: DedupParams,
    pool: Pool,
    rows: Rows,
    described_in: Path,
    held_out: NDArray[np.float16],
    identical: NDArray[np.int64],
    at_self: float,
    at_relative: float,
    work: Path,
) -> tuple[decide.Copies, Touch, EdgeParts, list[Cut]]:
    graph, count = params.graph, len(pool)
    parts = ranges(pool.rows["shard"].to_pylist(), graph.part_rows)
    floor = _floor(params, at_self, at_relative)
    near, executor = params.neighbours, params.executor
    edges = search_edges(rows, described_in.name, graph.k, floor, near, parts, described_in, executor)
    on_disk = count >= graph.labels_on_disk_from
    labels = components(count, edges, at_self, work / "components.bin" if on_disk else None)
    cuts: list[Cut] = []
    if graph.giants is not None:
        labels, cuts = cut_giants(labels, edges, at_self, graph.giants)
        for cut in cuts:
            print(
                f"dedup: a component of {cut.size:,} images cut into {cut.parts:,} at cosines up to {cut.threshold:g}; "
                f"the largest part holds {cut.largest:,}",
                flush=True,
            )
    touch = _touch(rows, parts, held_out, at_relative, near, executor, work / "held-out.npy")
    touch = with_identical(touch, identical)
    tied = labels
    if params.relative.within == "relative":
        tied = components(count, edges, at_relative, work / "relative.bin" if on_disk else None)
    merits = scores(graph.keep, pool, labels, executor, params.chunk)
    digests = np.array(pool.rows["stored_sha256"].to_pylist())
    copies = decide.settle(labels, dropped_components(tied, touch.touched), merits, digests)
    return copies, touch, edges, cuts


def _touch(
    rows: Rows,
    parts: Sequence[tuple[int, int]],
    held_out: NDArray[np.float16],
    threshold: float,
    near: NeighbourParams,
    executor: ExecutorParams,
    path: Path,
) -> Touch:
    """What touches the ``held_out`` images [M, R, d], which go to ``path`` for workers to map; M may be 0."""
    count = len(rows.open())
    if not len(held_out):
        return Touch(np.full(count, -1), np.full(count, -np.inf, np.float32), np.zeros(count, bool))
    with atomic_file(path) as file:  # always anew: a benchmark's pictures may change under their keys
        np.save(file, held_out, allow_pickle=False)
    return touching_parts(rows, parts, Rows(path), threshold, near, executor)


def _retrieve(
    params: DedupParams,
    pool: Pool,
    rows: NDArray[np.float16],
    sets: Mapping[str, Benchmark],
    described: Mapping[str, NDArray[np.float16]],
    copies: decide.Copies,
    work: Path,
) -> tuple[Retrieved | None, list[str], list[str], list[Brought]]:
    """What is retrieved, over all rows of the pool, with the queries' keys and reasons, and what each set brought."""
    survivors = np.flatnonzero(copies.survives)
    if params.retrieval is None or not len(survivors):
        return None, [], [], []
    how = params.retrieval
    queries = {name: np.flatnonzero(~sets[name].test) for name in how.queries}
    if how.descriptor is None:
        embedded = {name: described[name][training, 0] for name, training in queries.items()}
    else:
        _, descriptor, described_rows = _describe_pool(how.descriptor, params, pool, work, "retrieval")
        rows = described_rows.open()[:, 0]
        embedded = {
            name: _describe_set(descriptor, sets[name], which=training)[:, 0] for name, training in queries.items()
        }
    keys = [sets[name].keys[i] for name, training in queries.items() for i in training]
    reasons = [f"retrieved:{name}" for name, training in queries.items() for _ in training]
    found, brought = retrieve(gathered(rows, survivors, work / "survivors.npy"), embedded, how, params.neighbours)
    sources = {name: survivors[brought_rows] for name, brought_rows in found.sources.items()}
    times, query = np.zeros(len(pool), np.int64), np.full(len(pool), -1, np.int64)
    similarity = np.full(len(pool), np.nan, np.float32)
    times[survivors], query[survivors], similarity[survivors] = found.times, found.query, found.similarity
    for name, prefix in how.as_is.items():
        starts = np.array([source.startswith(prefix) for source in pool.rows["source"].to_pylist()])
        whole = starts & copies.survives
        if not starts.any():
            raise VitrailError(f"retrieval.as_is.{name}: no image's source begins with {prefix!r}; see the index")
        sources[name] = np.union1d(sources.get(name, whole[:0]), np.flatnonzero(whole)).astype(np.int64)
        whole_only = whole & (times == 0)  # what a query found as well stays with the query that explains it
        times[whole_only], query[whole_only] = 1, len(keys)
        keys.append("")
        reasons.append(f"as-is:{name}")
        brought.append(Brought(f"{name} as is", 0, int(whole.sum()), int(whole.sum())))
    return Retrieved(times, query, similarity, sources), keys, reasons, brought


def _balance(
    params: DedupParams, rows: NDArray[np.float16], copies: decide.Copies, work: Path
) -> NDArray[np.bool_] | None:
    """Which rows of the pool balancing samples; None where it is off."""
    survivors = np.flatnonzero(copies.survives)
    if params.balance is None or not len(survivors):
        return None
    sampled = np.zeros(len(rows), bool)
    chosen = balance(gathered(rows, survivors, work / "survivors.npy"), params.balance, params.neighbours.device)
    sampled[survivors[chosen]] = True
    return sampled


def _manifest(pool: Pool, decisions: list[dict[str, object]], found: Retrieved | None) -> pa.Table:
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


def _report(
    decisions: list[dict[str, object]],
    copies: decide.Copies,
    thresholds: tuple[float, float],
    calibration: Calibration | None,
    cuts: list[Cut],
    brought: list[Brought],
    held_out: int,
) -> dict[str, Any]:
    sizes = component_sizes(copies.labels)
    reasons: dict[str, int] = {}
    for row in decisions:
        reasons[str(row["reason"])] = reasons.get(str(row["reason"]), 0) + 1
    return {
        "images": len(decisions),
        "selected": sum(row["status"] == "selected" for row in decisions),
        "held_out_images": held_out,
        "reasons": dict(sorted(reasons.items())),
        "components": len(sizes),
        "largest_component": int(sizes[0]),
        "component_sizes": size_histogram(copies.labels),
        "giants": [cut._asdict() for cut in cuts],
        "retrieval": [line._asdict() for line in brought],
        "threshold_self": round(thresholds[0], 4),
        "threshold_relative": round(thresholds[1], 4),
        "calibration": calibration.summary() if calibration else {"thresholds": "given"},
    }


def _show(
    folder: Path,
    pool: Pool,
    copies: decide.Copies,
    touch: Touch,
    sets: Mapping[str, Benchmark],
    against: Literal["test", "all"],
    calibration: Calibration | None,
    recording: Run,
) -> None:
    from components.images.decode import encode_jpeg

    store = pool.store()
    if calibration is not None:
        recording.log_image(pictures.draw_calibration(calibration, folder / "calibration.png"), "calibration")
    groups = pictures.duplicate_groups(copies.labels, copies.kept, PAGE)
    shown = pictures.page([[pool.rgb(row, store) for row in group[:8]] for group in groups])
    pictures.save(shown, folder / "duplicates.jpg", encode_jpeg)
    recording.log_image(shown, "duplicates")
    references = [(b, int(i)) for b in sets.values() for i in np.flatnonzero(b.kept_out(against))]
    # The least alike first: exact copies are no news, these are where the threshold decides.
    caught = np.flatnonzero(touch.touched)
    caught = caught[np.argsort(touch.similarity[caught], kind="stable")][: PAGE * 4]
    pairs = []
    for row in caught:
        benchmark, number = references[int(touch.reference[row])]
        pairs.append([pool.rgb(int(row), store), benchmark.images.rgb(number)])
    lines = [[picture for pair in pairs[i : i + 4] for picture in pair] for i in range(0, len(pairs), 4)]
    shown = pictures.page(lines)
    pictures.save(shown, folder / "held-out.jpg", encode_jpeg)
    recording.log_image(shown, "held-out")


def _record(recording: Run, report: dict[str, Any], out: Path, docs: Path, calibrated: bool) -> None:
    numbers = {f"dedup.{key}": float(value) for key, value in report.items() if isinstance(value, int | float)}
    recording.log_metrics(numbers | {f"dedup.{key}": float(value) for key, value in report["reasons"].items()})
    names = ["calibration.json", "sources.json", "duplicates.jpg", "held-out.jpg", "review.html"]
    for name in names + ["calibration.png"] * calibrated:
        recording.log_artifacts(out / name, "dedup")
    recording.log_artifacts(docs, "gx")


def _take(finished: Path, path: Path) -> None:
    """``finished`` at ``path`` as well, not copied where both stand on one file system; it is never written again."""
    try:
        os.link(finished, path)
    except OSError:  # no hard links there
        shutil.copyfile(finished, path)


def _take_index(finished: Path, folder: Path) -> None:
    """The merged index, for ``search``, where the pool was large enough for one."""
    if (finished / "merged/merged.json").exists():
        (folder / "merged").mkdir(parents=True)
        for name in ("index.json", "merged/merged.json", "merged/lists.faiss", "merged/lists.ivfdata"):
            _take(finished / name, folder / name)


def _save_keys(path: Path, keys: list[str]) -> None:
    import pyarrow.parquet as pq

    with atomic_file(path) as file:
        pq.write_table(pa.table({"key": pa.array(keys, pa.string())}), file)


def _save_json(path: Path, content: object) -> None:
    with atomic_file(path, "w") as file:
        json.dump(content, file, indent=1)
