"""The dedup stage: descriptors, copy graph, relative dedup, retrieval; the training manifest.

DINOv2 paper, section 3 and appendix A. Every kept image of the index ends in decisions.parquet with its reason.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from components.dedup import decide, pictures
from components.dedup.balance import BalanceParams, balance
from components.dedup.calibrate import (
    Calibration,
    CalibrationParams,
    calibrate,
    copy_similarities,
    nearest_differing,
)
from components.dedup.copygraph import Rows, ranges, search_edges
from components.dedup.descriptors import (
    Descriptor,
    DescriptorParams,
    TrainedParams,
    adopt,
    learn,
    load_descriptor,
)
from components.dedup.edges import EDGES, EdgeParts
from components.dedup.extract import Pool, describe, describe_pictures
from components.dedup.fit import learning_pictures
from components.dedup.giants import Cut, GiantParams, cut_giants
from components.dedup.graph import Keep, component_sizes, components, size_histogram
from components.dedup.keep import scores
from components.dedup.recall import measure_recall
from components.dedup.reference import RelativeParams, Touch, dropped_components, touching_parts
from components.dedup.retrieve import Brought, RetrievalParams, Retrieved, retrieve
from components.dedup.review import sweep_thresholds, write_review
from components.dedup.sscd import SscdParams
from components.dedup.sweep import sweep
from components.errors import VitrailError, nearest
from components.evaluation.benchmarks import Benchmark, BenchmarksFile, load_benchmark
from components.executor import ExecutorParams
from components.images.tables import DECISIONS, MANIFEST, write_table
from components.neighbours import NeighbourParams
from components.params import Strict, fingerprint
from components.storage import StorageParams, atomic_dir, atomic_file, publish
from components.tracking import Run, TrackingParams
from components.tracking import run as tracked

FORMAT = 3  # of this stage's scratch files; a change makes old ones stale
PAGE = 12  # groups on a page of pictures
CHECKED = 1_000_000  # edges that Great Expectations looks at, of very many


class GraphParams(Strict):
    """The copy graph of the pool with itself."""

    k: int = Field(64, ge=1)  # neighbours an image; the paper's
    threshold: float | Literal["calibrated"] = "calibrated"  # cosine; the paper: 0.6 with SSCD
    edges_from: float = Field(0.5, ge=-1, lt=1)  # cosine over which edges are kept, for the threshold sweep
    keep: Keep = "largest"  # image of a component; ties: the smallest content hash. See keep.py
    giants: GiantParams | None = GiantParams()  # None: components are left as they are, however large
    largest_share: float = Field(0.1, gt=0, le=1)  # of the pool; a component still larger stops the stage: it chains
    part_rows: int = Field(1_000_000, ge=1)  # images, at least, a piece of the index and a part of the edges


class DedupParams(Strict):
    """``params/dedup.yaml``."""

    descriptor: DescriptorParams
    # Crops of every image that are described beside it, (side kept, n) for n x n: what a cropped copy is found by
    windows: list[tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[int, Field(ge=1)]]] = []
    neighbours: NeighbourParams = NeighbourParams()
    calibration: CalibrationParams | None = None  # None: both thresholds must be numbers
    graph: GraphParams
    relative: RelativeParams
    retrieval: RetrievalParams | None = None  # None: all that survives is selected
    balance: BalanceParams | None = None  # without queries: a sample spread evenly; not beside `retrieval`
    executor: ExecutorParams = ExecutorParams(workers=0)
    chunk: int = Field(512, ge=1)  # images a unit of work


def run(
    params: DedupParams,
    benchmarks: BenchmarksFile,
    curated: Path,
    out: Path,
    report_path: Path,
    storage: StorageParams,
    tracking: TrackingParams,
) -> dict[str, Any]:
    """Deduplicate ``curated`` into ``out``; returns the report, also written to ``report_path``.

    Raises:
        VitrailError: bad input, a component over its largest share, or a broken quality suite.
    """
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
    with tracked("dedup", "dedup", tracking, params) as recording:
        recording.log_dataset("curated", digest[:16], str(curated), "dedup")
        work = _work_folder(out, digest[:16])
        descriptor, pieces = _describe_pool(params.descriptor, params, pool, work, params.windows)
        rows = np.ascontiguousarray(pieces[:, 0])  # [N, dim] of whole images; pieces [N, R, dim] has windows too
        described = {
            name: describe_pictures(descriptor, map(one.images.rgb, range(len(one.keys))), params.windows)
            for name, one in sets.items()
        }
        calibration = _calibrate(params, pool, pieces, descriptor, sets, described)
        at_self, at_relative = _thresholds(params, calibration)

        rows_file = _rows_file(work / "rows.npy", pieces)
        copies, touch, held_keys, edges, cuts = _copies(
            params, pool, rows_file, sets, described, at_self, at_relative, work
        )
        found, queries, reasons, brought = _retrieve(params, pool, rows, sets, described, copies, work)
        sampled = _balance(params, rows, copies)
        decisions = decide.decisions(pool.keys, rows, copies, touch, held_keys, found, queries, reasons, sampled)
        report = _report(decisions, copies, (at_self, at_relative), calibration, cuts, brought)
        report |= measure_recall(rows_file, edges, params.graph.k, at_self, params.neighbours).report()
        manifest = _manifest(pool, decisions, found)
        if not len(manifest):
            raise VitrailError(f"{curated}: dedup dropped all {len(pool)} images ({report['reasons']}); see thresholds")
        floor = _floor(params, at_self, at_relative)
        outcomes = sweep(
            len(pool), edges, touch.similarity, sweep_thresholds(floor, (at_self, at_relative)), copies.labels
        )
        docs = report_path.parent / "gx/dedup"
        with atomic_dir(out) as folder:
            _validate(params, pool, rows, manifest, decisions, copies, touch, edges, floor, report, docs)
            write_table(folder / "manifest.parquet", manifest, MANIFEST)
            write_table(folder / "decisions.parquet", decisions, DECISIONS)
            np.save(folder / "descriptors.npy", rows, allow_pickle=False)
            _save_keys(folder / "keys.parquet", pool.keys)
            np.save(folder / "to-held-out.npy", touch.similarity.astype(np.float16), allow_pickle=False)
            (folder / "edges").mkdir()
            for part in edges.parts:
                shutil.copyfile(part, folder / "edges" / part.name)
            _save_json(folder / "params.json", params.model_dump(mode="json"))
            if not isinstance(params.descriptor, SscdParams):
                shutil.copyfile(work / "weights.safetensors", folder / "descriptor.safetensors")
            _save_json(folder / "calibration.json", report["calibration"])
            _save_json(folder / "thresholds.json", {"self": at_self, "relative": at_relative, "floor": floor})
            _save_json(folder / "sources.json", [line._asdict() for line in brought])
            _show(folder, pool, copies, touch, sets, params.relative.against, calibration, recording)
            write_review(folder / "review.html", pool, decisions, sets, outcomes, (at_self, at_relative), 2 * PAGE)
        publish(storage, out, ("manifest.parquet", "decisions.parquet"), "dedup", digest[:16])
        report["seconds"] = round(time.monotonic() - began, 1)
        _save_json(report_path, report)
        _record(recording, report, out, docs)
        shutil.rmtree(work.parent)
    return report


def _check(params: DedupParams, benchmarks: BenchmarksFile) -> None:
    """Fail before minutes of work on what can be seen at once."""
    named = [*(params.retrieval.queries if params.retrieval else [])]
    named += [params.calibration.benchmark] if params.calibration else []
    for name in named:
        if name not in benchmarks.benchmarks:
            known = sorted(benchmarks.benchmarks)
            raise VitrailError(f"dedup names the benchmark {name!r}, not in benchmarks.yaml{nearest(name, known)}")
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


def _describe_pool(
    given: DescriptorParams, params: DedupParams, pool: Pool, work: Path, grid: Sequence[tuple[float, int]] = ()
) -> tuple[Descriptor, NDArray[np.float16]]:
    """The descriptor, learned from the pool where its kind asks for that, and the pool's rows [N, R, dim]."""
    weights = work / "weights.safetensors"
    if not isinstance(given, SscdParams) and not weights.exists():
        if isinstance(given, TrainedParams) and given.weights:
            adopt(given, weights)
        else:
            learn(given, learning_pictures(given, pool, work, params.executor, params.chunk), weights)
    rows = describe(pool, given, weights, work, params.executor, params.chunk, grid)
    return load_descriptor(given, weights, pool.storage), rows


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


def _rows_file(path: Path, rows: NDArray[np.float16]) -> Rows:
    """``rows`` [N, R, d] in a file that workers can map."""
    if not path.exists():
        with atomic_file(path) as file:
            np.save(file, rows, allow_pickle=False)
    return Rows(path)


def _floor(params: DedupParams, at_self: float, at_relative: float) -> float:
    return min(at_self, at_relative, params.graph.edges_from)


def _copies(
    params: DedupParams,
    pool: Pool,
    rows: Rows,
    sets: Mapping[str, Benchmark],
    described: Mapping[str, NDArray[np.float16]],
    at_self: float,
    at_relative: float,
    work: Path,
) -> tuple[decide.Copies, Touch, list[str], EdgeParts, list[Cut]]:
    graph, count = params.graph, len(pool)
    parts = ranges(pool.rows["shard"].to_pylist(), graph.part_rows)
    floor = _floor(params, at_self, at_relative)
    edges = search_edges(rows, work.name, graph.k, floor, params.neighbours, parts, work, params.executor)
    labels = components(count, edges, at_self)
    cuts: list[Cut] = []
    if graph.giants is not None:
        labels, cuts = cut_giants(labels, edges, at_self, graph.giants)
        for cut in cuts:
            print(
                f"dedup: a component of {cut.size:,} images cut into {cut.parts:,} at cosines up to {cut.threshold:g}; "
                f"the largest part holds {cut.largest:,}",
                flush=True,
            )
    asked = {name: one.kept_out(params.relative.against) for name, one in sets.items()}
    held_out = np.concatenate([described[name][asked[name]] for name in sets])
    held_keys = [one.keys[i] for name, one in sets.items() for i in np.flatnonzero(asked[name])]
    held_file = _rows_file(work / "held-out.npy", held_out)
    touch = touching_parts(rows, parts, held_file, at_relative, params.neighbours, params.executor)
    tied = labels if params.relative.within == "self" else components(count, edges, at_relative)
    merits = scores(graph.keep, pool, labels, params.executor, params.chunk)
    digests = np.array(pool.rows["stored_sha256"].to_pylist())
    copies = decide.settle(labels, dropped_components(tied, touch.touched), merits, digests)
    return copies, touch, held_keys, edges, cuts


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
        descriptor, pieces = _describe_pool(how.descriptor, params, pool, work / "retrieval")
        rows = pieces[:, 0]
        embedded = {
            name: describe_pictures(descriptor, (sets[name].images.rgb(int(i)) for i in training))[:, 0]
            for name, training in queries.items()
        }
    keys = [sets[name].keys[i] for name, training in queries.items() for i in training]
    reasons = [f"retrieved:{name}" for name, training in queries.items() for _ in training]
    found, brought = retrieve(rows[survivors], embedded, how, params.neighbours)
    sources = {name: survivors[brought_rows] for name, brought_rows in found.sources.items()}
    times, query = np.zeros(len(pool), np.int64), np.full(len(pool), -1, np.int64)
    similarity = np.full(len(pool), np.nan, np.float32)
    times[survivors], query[survivors], similarity[survivors] = found.times, found.query, found.similarity
    for name, prefix in how.as_is.items():
        starts = np.array([source.startswith(prefix) for source in pool.rows["source"].to_pylist()])
        whole = starts & copies.survives
        if not starts.any():
            raise VitrailError(f"retrieval.as_is.{name}: no image's source begins with {prefix!r}; see index.parquet")
        sources[name] = np.union1d(sources.get(name, whole[:0]), np.flatnonzero(whole)).astype(np.int64)
        whole_only = whole & (times == 0)  # what a query found as well stays with the query that explains it
        times[whole_only], query[whole_only] = 1, len(keys)
        keys.append("")
        reasons.append(f"as-is:{name}")
        brought.append(Brought(f"{name} as is", 0, int(whole.sum()), int(whole.sum())))
    return Retrieved(times, query, similarity, sources), keys, reasons, brought


def _balance(params: DedupParams, rows: NDArray[np.float16], copies: decide.Copies) -> NDArray[np.bool_] | None:
    """Which rows of the pool balancing samples; None where it is off."""
    survivors = np.flatnonzero(copies.survives)
    if params.balance is None or not len(survivors):
        return None
    sampled = np.zeros(len(rows), bool)
    sampled[survivors[balance(rows[survivors], params.balance, params.neighbours.device)]] = True
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
) -> dict[str, Any]:
    sizes = component_sizes(copies.labels)
    reasons: dict[str, int] = {}
    for row in decisions:
        reasons[str(row["reason"])] = reasons.get(str(row["reason"]), 0) + 1
    return {
        "images": len(decisions),
        "selected": sum(row["status"] == "selected" for row in decisions),
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


def _validate(
    params: DedupParams,
    pool: Pool,
    rows: NDArray[np.float16],
    manifest: pa.Table,
    decisions: list[dict[str, object]],
    copies: decide.Copies,
    touch: Touch,
    edges: EdgeParts,
    floor: float,
    report: dict[str, Any],
    out: Path,
) -> None:
    from components.quality import validate
    from components.quality.suites import (
        components_suite,
        decisions_suite,
        descriptor_table,
        descriptors_suite,
        edges_suite,
        manifest_suite,
    )

    share = report["largest_component"] / len(pool)
    if report["largest_component"] > 2 and share > params.graph.largest_share:
        raise VitrailError(
            f"dedup: one component holds {report['largest_component']} of {len(pool)} images ({share:.0%}, "
            f"graph.largest_share allows {params.graph.largest_share:.0%}); raise graph.threshold, now "
            f"{report['threshold_self']}"
        )
    own = np.flatnonzero(copies.labels == np.arange(len(pool)))
    sizes = np.bincount(copies.labels, minlength=len(pool))[own]
    partition = pa.table({"component": own, "size": sizes, "kept": copies.kept[own]})
    validate(partition, components_suite(len(pool), params.graph.largest_share), out)
    validate(_some(edges), edges_suite(len(pool), floor), out)
    forbidden = {key for key, touched in zip(pool.keys, touch.touched, strict=True) if touched}
    validate(descriptor_table(rows, pool.keys, pool.keys), descriptors_suite(rows.shape[1], tolerance=1e-3), out)
    validate(manifest, manifest_suite(pool.rows, forbidden), out)
    table = pa.Table.from_pylist(decisions, schema=DECISIONS)
    validate(table, decisions_suite(pool.rows, decide.REASONS), out)


def _some(edges: EdgeParts) -> pa.Table:
    """All edges, or the first :data:`CHECKED` of very many."""
    taken: list[pa.Table] = []
    held = 0
    for block in edges:
        taken.append(pa.table([pa.array(column) for column in block], schema=EDGES))
        held += len(block.a)
        if held >= CHECKED:
            break
    return pa.concat_tables(taken) if taken else EDGES.empty_table()


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


def _record(recording: Run, report: dict[str, Any], out: Path, docs: Path) -> None:
    numbers = {f"dedup.{key}": float(value) for key, value in report.items() if isinstance(value, int | float)}
    recording.log_metrics(numbers | {f"dedup.{key}": float(value) for key, value in report["reasons"].items()})
    for name in ("calibration.json", "calibration.png", "duplicates.jpg", "held-out.jpg", "review.html"):
        if (out / name).exists():
            recording.log_artifacts(out / name, "dedup")
    recording.log_artifacts(docs, "gx")


def _work_folder(out: Path, digest: str) -> Path:
    """The scratch folder of this input and these parameters, beside ``out``; what others left is removed."""
    parent = out.parent / f".{out.name}.work"
    for other in parent.iterdir() if parent.is_dir() else ():
        if other.name != digest:
            shutil.rmtree(other)
    (parent / digest).mkdir(parents=True, exist_ok=True)
    return parent / digest


def _save_keys(path: Path, keys: list[str]) -> None:
    import pyarrow.parquet as pq

    with atomic_file(path) as file:
        pq.write_table(pa.table({"key": pa.array(keys, pa.string())}), file)


def _save_json(path: Path, content: object) -> None:
    with atomic_file(path, "w") as file:
        json.dump(content, file, indent=1)
