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
from components.benchmark.copies import measure_copies
from components.benchmark.features.contenders import gather
from components.benchmark.features.own import LEAST, figures
from components.benchmark.features.own import table as own_table
from components.benchmark.features.spread import Placement
from components.benchmark.measure import measure, measure_dense, measure_videos
from components.benchmark.measured import Measured, Setup
from components.benchmark.methods.dense import not_measured
from components.benchmark.methods.figure import figure_table
from components.benchmark.methods.label_efficiency import few_shot_table
from components.benchmark.methods.protocol import Protocol, refuse_changed
from components.benchmark.methods.ranking import ranking_table
from components.benchmark.methods.scoring import majority
from components.benchmark.outputs import ScoreSupplement, Shown, draw_pictures, earlier, record, write
from components.benchmark.oxford import measure_revisited
from components.benchmark.pages.published import Published, published_table
from components.benchmark.pages.tables import markdown, nested
from components.benchmark.pages.training_curves import read_curve, trade_off_table
from components.benchmark.params import BenchmarkStageParams
from components.benchmark.robust import commonest
from components.context import StageContext
from components.evaluation.probing.seeds import seed_images
from components.evaluation.sets.benchmarks import Benchmark, BenchmarksFile, load_benchmark
from components.evaluation.sets.copies_set import load_copies
from components.evaluation.sets.robustness_set import RobustSet, load_robustness
from components.executor import kept_workers
from components.images.decode import RGB
from components.lock import hold
from components.storage import atomic_dir, atomic_file

NO_SCORES = "No labelled images in params/benchmarks.yaml, so no scores: kNN, linear probe and intervals are left out."


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
    refuse_changed(earlier(outputs).get("protocol"), protocol, outputs)
    contenders = gather(inputs.checkpoints, protocol.params.features, params.baselines, device)
    pictures = _own_pictures(params, inputs, context)
    recorded = params.model_dump(mode="json", exclude={"executor"})
    recorded["protocol"] = protocol.params.model_dump(mode="json")
    # Features that other processes have computed wait beside the results, where an interrupted run finds them.
    kept = None if params.feature_cache is None else Path(params.feature_cache)
    place = Placement(params.executor, params.device, outputs.with_name(f".{outputs.name}.features"), kept)
    setup = Setup(params, protocol, device, place)
    recording = tracking.run("benchmark", "benchmark", context.tracking, recorded, protocol.tags)
    with hold(outputs), recording as run, kept_workers(params.executor):
        loaded = [load_benchmark(name, spec) for name, spec in inputs.benchmarks.scored.items()]
        robust = {one.name: _robust(one, inputs.benchmarks) for one in loaded}
        measured: list[Measured] = []
        for one in loaded:
            measured += measure(contenders, one, robust[one.name], setup)
        dense, videos = inputs.benchmarks.dense.items(), inputs.benchmarks.videos.items()
        measured += [measure_dense(contenders, name, spec, setup) for name, spec in dense]
        measured += [measure_videos(contenders, name, spec, setup) for name, spec in videos]
        copies = [load_copies(name, spec) for name, spec in inputs.benchmarks.copies.items()]
        measured += [measure_copies(contenders, one, setup) for one in copies]
        found = inputs.benchmarks.revisited.items()
        measured += [measure_revisited(contenders, name, spec, protocol, setup.place) for name, spec in found]
        majorities = {one.name: majority(one) for one in loaded}
        majorities |= {part.pictures.name: commonest(one, part) for one in loaded for part in robust[one.name]}
        table = _table(measured, majorities, inputs, params.intervals.confidence)
        curves = {one.name: read_curve(one.source) for one in contenders if one.source is not None}
        table += trade_off_table(curves)
        spread: dict[str, dict[str, float]] = {}
        if params.own is not None and len(pictures) >= LEAST:
            spread = figures(contenders, pictures, protocol.params.features.batch_size)
            table = "\n".join(filter(None, [table, own_table(spread, len(pictures))]))
        if not measured:
            table = f"{NO_SCORES}\n\n{table}"
        with atomic_dir(outputs) as folder:
            write(folder, measured, majorities, table, ScoreSupplement(protocol, spread, curves))
            shown = Shown([one.benchmark for one in measured], _some(pictures, params.pca.own))
            draw_pictures(folder / "pca", contenders, shown, params.pca, device, run)
            run.log_artifacts(folder, "benchmark")
        record(run, measured, protocol)
        run.log_metrics({f"own/{name}/{key}": value for name, one in spread.items() for key, value in one.items()})
        if context.report is not None:
            content = nested([score for one in measured for score in one.scores])
            for figure in (figure for one in measured for figure in [*one.ranked, *one.dense]):
                tasks = content.setdefault(figure.model, {}).setdefault(figure.benchmark, {})
                tasks.setdefault(figure.task, {})[figure.method] = figure.value
            with atomic_file(context.report, "w") as file:
                json.dump(_together(content, spread), file, indent=1)
    return table


def _table(
    measured: Sequence[Measured],
    majorities: Mapping[str, Mapping[str, float]],
    inputs: BenchmarkInputs,
    confidence: float,
) -> str:
    """All tables below one another, in Markdown."""
    labelled = [one for one in measured if one.scores]
    found = [score for one in labelled for score in one.scores]
    table = markdown(found, [one.benchmark for one in labelled], majorities, inputs.protocol, confidence)
    table += few_shot_table([figure for one in labelled for figure in one.few], confidence)
    table += ranking_table([f for one in measured for f in one.ranked if f.task != "corruptions"], confidence)
    kept = [figure for one in measured for figure in one.ranked if figure.task == "corruptions"]
    table += figure_table(kept, "error by corruption", "`mean` is over corruptions; mCE divides each by AlexNet's")
    note = f"{confidence:.0%} intervals: bootstrap over pictures"
    table += figure_table(
        [figure for one in measured for figure in one.dense], "segmentation, depth, propagation, matching", note
    )
    sections = {one.name: one.pictures.truth.kind for one in measured if one.pictures is not None}
    sections_of_videos = dict.fromkeys(inputs.benchmarks.videos, "propagation")
    for name, section in (sections | sections_of_videos).items():
        table += not_measured(name, section, inputs.protocol)
    return table + "".join("\n" + part for one in measured if (part := published_table(inputs.published, one.name)))


def _robust(benchmark: Benchmark, file: BenchmarksFile) -> list[RobustSet]:
    """The sets that test the classifiers of ``benchmark``."""
    return [load_robustness(name, one, benchmark) for name, one in file.robustness.items() if one.of == benchmark.name]


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


def device_of(wanted: str) -> str:
    """``wanted``, or for "auto" the GPU where there is one."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
