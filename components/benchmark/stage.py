"""The benchmark stage: features of every contender, their scores with intervals, PCA pictures, and the comparison.

Held-out images serve for nothing but the final scores: what could be chosen (the probe's cost) is chosen on the
training side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from components import tracking
from components.benchmark.contenders import BaselineParams, Contender, gather
from components.benchmark.feature_cache import cached_features
from components.benchmark.outcome import Outcome, outcome_table
from components.benchmark.own import LEAST, OwnParams, figures
from components.benchmark.own import table as own_table
from components.benchmark.pictures import PcaParams, examples, photographs, picture, save_png
from components.benchmark.protocol import Protocol, refuse_changed
from components.benchmark.published import Published, published_table
from components.benchmark.ranking import RankScore, copy_scores, ranking_table, retrieval_scores
from components.benchmark.scoring import Few, IntervalParams, Score, majority, outcomes, scores
from components.benchmark.tables import few_shot_table, flat, markdown, nested
from components.context import StageContext
from components.evaluation.benchmarks import Benchmark, BenchmarksFile, load_benchmark
from components.evaluation.features import Rows, square
from components.evaluation.patch_kmeans import PatchKmeansParams, fit_patch_kmeans
from components.evaluation.seeds import seed_images
from components.images.decode import RGB
from components.lock import hold
from components.params import Name, Strict
from components.progress import track
from components.storage import atomic_dir, atomic_file

PATCHES = "patch k-means"
PATCH_IMAGES = 500  # training images that its patches are drawn from
NO_SCORES = "No labelled images in params/benchmarks.yaml, so no scores: kNN, linear probe and intervals are left out."


class BenchmarkStageParams(Strict):
    """``params/benchmark.yaml``."""

    device: str = "auto"  # auto, cpu or cuda
    protocol: Name  # a file in params/protocols/
    feature_cache: str | None = None  # folder in which checkpoints' features are kept; None: nowhere
    baselines: BaselineParams
    patch_kmeans: PatchKmeansParams | None = None  # None: not a baseline
    intervals: IntervalParams
    pca: PcaParams
    own: OwnParams | None = OwnParams()  # None: no figures of the training images' features


@dataclass(frozen=True)
class BenchmarkInputs:
    """What the benchmark stage reads."""

    checkpoints: Sequence[str | Path]  # models by value, or folders of exported ones
    benchmarks: BenchmarksFile
    protocol: Protocol  # the one that `params` name
    curated: Path | None = None  # image shards; with `manifest`, the training images are looked at, too
    manifest: Path | None = None
    published: Sequence[Published] = ()  # scores of released models, shown below benchmarks of the same name


def run(params: BenchmarkStageParams, inputs: BenchmarkInputs, outputs: Path, context: StageContext) -> str:
    """Compare all checkpoints on all benchmarks; write ``outputs`` and ``context.report``; return the table.

    ``outputs`` holds ``scores.json``, ``scores.parquet``, ``outcomes.parquet``, ``table.md`` and ``pca/*.png``. Of
    the training images come figures of features and PCA pictures, which need no label.

    Raises:
        VitrailError: no checkpoint, a damaged one, a benchmark that is missing, an unreachable MLflow, or another run
            at work on ``outputs``.
    """
    device, protocol = device_of(params.device), inputs.protocol
    refuse_changed(_earlier(outputs).get("protocol"), protocol, outputs)
    features = protocol.params.features
    contenders = gather(inputs.checkpoints, features, params.baselines, device)
    pictures = _own_pictures(params, inputs, context)
    recorded = params.model_dump(mode="json") | {"protocol": protocol.params.model_dump(mode="json")}
    with hold(outputs), tracking.run("benchmark", "benchmark", context.tracking, recorded, protocol.tags) as run:
        loaded = [load_benchmark(name, spec) for name, spec in inputs.benchmarks.scored.items()]
        measured = [_measure(contenders, benchmark, params, protocol, device) for benchmark in loaded]
        found = [score for one in measured for score in one.scores]
        majorities = {benchmark.name: majority(benchmark) for benchmark in loaded}
        table = markdown(found, loaded, majorities, protocol, params.intervals.confidence)
        table += "".join("\n" + part for one in loaded if (part := published_table(inputs.published, one.name)))
        table += few_shot_table({one.benchmark.name: one.few for one in measured}, params.intervals.confidence)
        table += ranking_table([score for one in measured for score in one.ranked], params.intervals.confidence)
        spread: dict[str, dict[str, float]] = {}
        if params.own is not None and len(pictures) >= LEAST:
            spread = figures(contenders, pictures, features.batch_size)
            table = "\n".join(filter(None, [table, own_table(spread, len(pictures))]))
        if not loaded:
            table = f"{NO_SCORES}\n\n{table}"
        with atomic_dir(outputs) as folder:
            _write(folder, measured, loaded, majorities, table, spread, protocol)
            _pictures(folder / "pca", contenders, loaded, params.pca, device, run, _some(pictures, params.pca.own))
            run.log_artifacts(folder, "benchmark")
        _record(run, measured, protocol)
        run.log_metrics({f"own/{name}/{key}": value for name, one in spread.items() for key, value in one.items()})
        if context.report is not None:
            with atomic_file(context.report, "w") as file:
                json.dump(_together(nested(found), spread), file, indent=1)
    return table


def _own_pictures(params: BenchmarkStageParams, inputs: BenchmarkInputs, context: StageContext) -> list[RGB]:
    if inputs.curated is None or inputs.manifest is None:
        return []
    wanted = max(params.own.images if params.own else 0, params.pca.own)
    return seed_images(inputs.curated, inputs.manifest, context.storage, wanted)


def _some(pictures: Sequence[RGB], count: int) -> list[RGB]:
    """``count`` of ``pictures``, evenly spread."""
    if len(pictures) <= count:
        return list(pictures)
    return [pictures[number * len(pictures) // count] for number in range(count)]


def _together(scores: dict[str, Any], spread: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    for name, one in spread.items():
        scores.setdefault(name, {})["own images"] = dict(one)
    return scores


@dataclass(frozen=True)
class Measured:
    """What was measured on one benchmark."""

    benchmark: Benchmark
    contenders: list[Contender]  # with the baseline that was fitted on its training images
    scores: list[Score]
    few: dict[str, Few]  # by contender
    right: dict[str, dict[tuple[str, str], Outcome]]  # by contender
    ranked: list[RankScore]


def _measure(
    contenders: Sequence[Contender], benchmark: Benchmark, params: BenchmarkStageParams, protocol: Protocol, device: str
) -> Measured:
    """The scores of all contenders on one benchmark."""
    contenders = _with_patches(contenders, benchmark, params, protocol)
    folder = None if params.feature_cache is None else Path(params.feature_cache)
    features = cached_features(contenders, benchmark, protocol.params.features, folder)
    both = {
        contender.name: outcomes(contender, features[contender.name], benchmark, protocol.params, device)
        for contender in track(contenders, f"{benchmark.name} kNN and probes", len(contenders), unit="models")
    }
    right = {name: found for name, (found, _) in both.items()}
    few = {name: found for name, (_, found) in both.items() if found}
    found = scores(contenders, right, benchmark, params.intervals, protocol.label)
    ranked = _ranked(contenders, features, benchmark, protocol, params.intervals.confidence)
    return Measured(benchmark, contenders, found, few, right, ranked)


def _ranked(
    contenders: Sequence[Contender],
    features: Mapping[str, Rows],
    benchmark: Benchmark,
    protocol: Protocol,
    confidence: float,
) -> list[RankScore]:
    """Retrieval and copy detection, where the protocol has them."""
    wanted, found = protocol.params, []
    if wanted.retrieval is not None:
        for one in contenders:
            rows = features[one.name]
            found += retrieval_scores(one, rows, benchmark, wanted.retrieval, confidence, protocol.label)
    if wanted.copies is not None:
        batch = wanted.features.batch_size
        found += copy_scores(contenders, features, benchmark, wanted.copies, batch, protocol.label)
    return found


def _with_patches(
    contenders: Sequence[Contender], benchmark: Benchmark, params: BenchmarkStageParams, protocol: Protocol
) -> list[Contender]:
    """``contenders`` with the baseline that is fitted on this benchmark's training images, if it is wanted."""
    wanted = params.patch_kmeans
    if wanted is None:
        return list(contenders)
    rows = np.random.default_rng(wanted.seed).permutation(np.flatnonzero(~benchmark.test))[:PATCH_IMAGES]
    crop = protocol.params.features.crop
    squares = np.stack([square(benchmark.images.rgb(row), wanted.side, crop) for row in np.sort(rows).tolist()])
    extractor = fit_patch_kmeans(squares, wanted, crop)
    facts = {"features": PATCHES, "fitted_on": benchmark.name} | wanted.model_dump()
    patches = Contender(PATCHES, "patches", extractor, facts)
    known = [replace(one, baselines=(*one.baselines, PATCHES)) if one.baselines else one for one in contenders]
    return [known[0], patches, *known[1:]]


def _write(
    folder: Path,
    measured: Sequence[Measured],
    benchmarks: Sequence[Benchmark],
    majorities: Mapping[str, Mapping[str, float]],
    table: str,
    spread: Mapping[str, Mapping[str, float]],
    protocol: Protocol,
) -> None:
    import pyarrow.parquet as pq

    found = [score for one in measured for score in one.scores]
    content = {
        "protocol": protocol.plain(),
        "benchmarks": {
            benchmark.name: {
                "digest": benchmark.digest,
                "train": int((~benchmark.test).sum()),
                "test": int(benchmark.test.sum()),
                "majority": majorities[benchmark.name],
            }
            for benchmark in benchmarks
        },
        "scores": [score.plain() for score in found],
        "few_shot": [
            {"model": name, "benchmark": one.benchmark.name, "task": task, "per_class": count, "fewest": shot.fewest}
            | {key: round(100 * value, 3) for key, value in shot.accuracy._asdict().items()}
            for one in measured
            for name, few in one.few.items()
            for (task, count), shot in few.items()
        ],
        "ranking": [score.plain() for one in measured for score in one.ranked],
        "own_images": spread,
    }
    (folder / "scores.json").write_text(json.dumps(content, indent=1) + "\n")
    pq.write_table(flat(found), folder / "scores.parquet")
    pq.write_table(outcome_table({one.benchmark.name: one.right for one in measured}), folder / "outcomes.parquet")
    (folder / "table.md").write_text(table)


def _pictures(
    folder: Path,
    contenders: Sequence[Contender],
    benchmarks: Sequence[Benchmark],
    params: PcaParams,
    device: str,
    run: tracking.Run,
    own: Sequence[RGB],
) -> None:
    folder.mkdir()
    groups = {"photographs": (photographs(params.photographs), params.foreground)}
    groups |= {"own": (list(own), params.foreground)}
    groups |= {benchmark.name: (examples(benchmark, params.labelled), False) for benchmark in benchmarks}
    for contender in contenders:
        if contender.model is None or contender.card is None:
            continue
        for group, (images, foreground) in groups.items():
            if images:
                name = f"{contender.name.replace(' ', '-').replace('/', '-')}-{group}"
                made = picture(contender.model, contender.card, images, params, device, foreground)
                save_png(str(folder / f"{name}.png"), made)
                run.log_image(made, f"pca/{name}")


def _record(run: tracking.Run, measured: Sequence[Measured], protocol: Protocol) -> None:
    """Scores go to each contender's LoggedModel, under metric names that are the same for all."""
    for one in measured:
        name, digest = one.benchmark.name, one.benchmark.digest
        run.log_dataset(name, digest, f"params/benchmarks.yaml#{name}", "benchmark")
        for contender in one.contenders:
            known = contender.card.model_id if contender.card else None
            model = run.ensure_model(known, contender.name, contender.facts, {"vitrail.kind": contender.kind})
            points = {score.metric: score.accuracy for score in one.scores if score.model == contender.name}
            points |= {score.metric: score.value for score in one.ranked if score.model == contender.name}
            for (task, count), shot in one.few.get(contender.name, {}).items():
                points[f"{name}/{task}/fewshot{count}"] = round(100 * shot.accuracy.value, 3)
            run.log_scores(model, points, (name, digest), tags=protocol.tags)


def _earlier(outputs: Path) -> dict[str, Any]:
    """The ``scores.json`` of an earlier run, or nothing."""
    try:
        content = json.loads((outputs / "scores.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def device_of(wanted: str) -> str:
    """``wanted``, or for "auto" the GPU where there is one."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
