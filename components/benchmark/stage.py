"""The benchmark stage: features of every contender, their scores with intervals, PCA pictures, and the comparison.

Held-out images serve for nothing but the final scores: what could be chosen (the probe's cost) is chosen on the
training side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import tracking
from components.benchmark.contenders import BaselineParams, Contender, gather
from components.benchmark.own import LEAST, OwnParams, figures
from components.benchmark.own import table as own_table
from components.benchmark.pictures import PcaParams, examples, photographs, picture, save_png
from components.benchmark.scoring import IntervalParams, KnnParams, Score, majority, outcomes, scores
from components.benchmark.tables import flat, markdown, nested
from components.context import StageContext
from components.evaluation.benchmarks import Benchmark, BenchmarksFile, load_benchmark
from components.evaluation.features import FeatureParams, extract
from components.evaluation.linear import LinearParams
from components.evaluation.seeds import seed_images
from components.images.decode import RGB
from components.lock import hold
from components.params import Strict
from components.progress import track
from components.storage import atomic_dir, atomic_file

NO_SCORES = "No labelled images in params/benchmarks.yaml, so no scores: kNN, linear probe and intervals are left out."


class BenchmarkStageParams(Strict):
    """``params/benchmark.yaml``."""

    device: str = "auto"  # auto, cpu or cuda
    features: FeatureParams
    knn: KnnParams
    linear: LinearParams
    baselines: BaselineParams
    intervals: IntervalParams
    pca: PcaParams
    own: OwnParams | None = OwnParams()  # None: no figures of the training images' features


@dataclass(frozen=True)
class BenchmarkInputs:
    """What the benchmark stage reads."""

    checkpoints: Sequence[str | Path]  # models by value, or folders of exported ones
    benchmarks: BenchmarksFile
    curated: Path | None = None  # image shards; with `manifest`, the training images are looked at, too
    manifest: Path | None = None


def run(params: BenchmarkStageParams, inputs: BenchmarkInputs, outputs: Path, context: StageContext) -> str:
    """Compare all checkpoints on all benchmarks; write ``outputs`` and ``context.report``; return the table.

    ``outputs`` holds ``scores.json``, ``scores.parquet``, ``table.md`` and ``pca/*.png``. Of the training images come
    figures of features and PCA pictures, which need no label.

    Raises:
        VitrailError: no checkpoint, a damaged one, a benchmark that is missing, an unreachable MLflow, or another run
            at work on ``outputs``.
    """
    device = device_of(params.device)
    contenders = gather(inputs.checkpoints, params.features, params.baselines, device)
    pictures = _own_pictures(params, inputs, context)
    with hold(outputs), tracking.run("benchmark", "benchmark", context.tracking, params) as run:
        loaded = [load_benchmark(name, spec) for name, spec in inputs.benchmarks.scored.items()]
        found = [score for benchmark in loaded for score in _measure(contenders, benchmark, params, device)]
        majorities = {benchmark.name: majority(benchmark) for benchmark in loaded}
        table = markdown(found, loaded, majorities, params.knn.shown, params.intervals.confidence)
        spread: dict[str, dict[str, float]] = {}
        if params.own is not None and len(pictures) >= LEAST:
            spread = figures(contenders, pictures, params.features.batch_size)
            table = "\n".join(filter(None, [table, own_table(spread, len(pictures))]))
        if not loaded:
            table = f"{NO_SCORES}\n\n{table}"
        with atomic_dir(outputs) as folder:
            _write(folder, found, loaded, majorities, table, spread)
            _pictures(folder / "pca", contenders, loaded, params.pca, device, run, _some(pictures, params.pca.own))
            run.log_artifacts(folder, "benchmark")
        _record(run, contenders, found, loaded)
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


def _measure(
    contenders: Sequence[Contender], benchmark: Benchmark, params: BenchmarkStageParams, device: str
) -> list[Score]:
    """The scores of all contenders on one benchmark."""
    extractors = {contender.name: contender.extractor for contender in contenders}
    features = extract(extractors, benchmark.images, params.features.batch_size, f"{benchmark.name} features")
    right = {
        contender.name: outcomes(contender, features[contender.name], benchmark, params.knn, params.linear, device)
        for contender in track(contenders, f"{benchmark.name} kNN and probes", len(contenders), unit="models")
    }
    return scores(contenders, right, benchmark, params.intervals)


def _write(
    folder: Path,
    found: Sequence[Score],
    benchmarks: Sequence[Benchmark],
    majorities: Mapping[str, Mapping[str, float]],
    table: str,
    spread: Mapping[str, Mapping[str, float]],
) -> None:
    import pyarrow.parquet as pq

    content = {
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
        "own_images": spread,
    }
    (folder / "scores.json").write_text(json.dumps(content, indent=1) + "\n")
    pq.write_table(flat(found), folder / "scores.parquet")
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


def _record(
    run: tracking.Run, contenders: Sequence[Contender], found: Sequence[Score], benchmarks: Sequence[Benchmark]
) -> None:
    """Scores go to each contender's LoggedModel, under metric names that are the same for all."""
    for benchmark in benchmarks:
        run.log_dataset(benchmark.name, benchmark.digest, f"params/benchmarks.yaml#{benchmark.name}", "benchmark")
    for contender in contenders:
        known = contender.card.model_id if contender.card else None
        model = run.ensure_model(known, contender.name, contender.facts, {"vitrail.kind": contender.kind})
        for benchmark in benchmarks:
            ours = [s for s in found if s.model == contender.name and s.benchmark == benchmark.name]
            run.log_scores(model, {s.metric: s.accuracy for s in ours}, (benchmark.name, benchmark.digest))


def device_of(wanted: str) -> str:
    """``wanted``, or for "auto" the GPU where there is one."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
