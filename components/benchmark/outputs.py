"""What the stage leaves: tables and pictures in its folder, and each contender's scores in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components import tracking
from components.benchmark.features.contenders import Contender
from components.benchmark.measured import Measured
from components.benchmark.methods.outcome import outcome_table, paired_table
from components.benchmark.methods.protocol import Protocol
from components.benchmark.pages.pictures import PcaParams, examples, photographs, picture, save_png
from components.benchmark.pages.results import file_name
from components.benchmark.pages.tables import flat
from components.benchmark.pages.training_curves import Point, plain
from components.evaluation.sets.labelled_set import Benchmark
from components.images.decode import RGB
from components.learning.export import weights_digest


class ScoreSupplement(NamedTuple):
    """What is written beside the scores."""

    protocol: Protocol
    spread: Mapping[str, Mapping[str, float]]  # figures of features of own images, by network
    curves: Mapping[str, Sequence[Point]]  # what probes said during training, by checkpoint


def write(
    folder: Path,
    measured: Sequence[Measured],
    majorities: Mapping[str, Mapping[str, float]],
    table: str,
    facts: ScoreSupplement,
) -> None:
    """The tables in ``folder``."""
    import pyarrow.parquet as pq

    found = [score for one in measured for score in one.scores]
    content = {
        "protocol": facts.protocol.plain(),
        "benchmarks": {
            one.name: {
                "digest": one.digest,
                "train": int((~one.benchmark.test).sum()),
                "test": int(one.benchmark.test.sum()),
                "majority": majorities.get(one.name, {}),
            }
            for one in measured
        },
        "scores": [score.plain() for score in found],
        "models": {
            contender.name: {"weights": weights_digest(contender.model)}
            for contender in {one.name: one for each in measured for one in each.contenders}.values()
            if contender.model is not None and contender.kind == "checkpoint"
        },
        "few_shot": [figure.plain() for one in measured for figure in one.few],
        "ranking": [figure.plain() for one in measured for figure in one.ranked],
        "dense": [figure.plain() for one in measured for figure in one.dense],
        "own_images": facts.spread,
        "training": plain(facts.curves),
    }
    (folder / "scores.json").write_text(json.dumps(content, indent=1) + "\n")
    pq.write_table(flat(found), folder / "scores.parquet")
    pq.write_table(outcome_table({one.name: one.right for one in measured}), folder / "outcomes.parquet")
    pq.write_table(paired_table([figure for one in measured for figure in one.figures]), folder / "paired.parquet")
    (folder / "table.md").write_text(table)


class Shown(NamedTuple):
    """Whose pictures are drawn, beside the photographs of the parameters."""

    benchmarks: Sequence[Benchmark]
    own: Sequence[RGB]  # of the training set


def draw_pictures(
    folder: Path, contenders: Sequence[Contender], shown: Shown, params: PcaParams, device: str, run: tracking.Run
) -> None:
    """PCA pictures of every checkpoint in ``folder`` and in MLflow."""
    folder.mkdir()
    groups = {"photographs": (photographs(params.photographs), params.foreground)}
    groups |= {"own": (list(shown.own), params.foreground)}
    groups |= {benchmark.name: (examples(benchmark, params.labelled), False) for benchmark in shown.benchmarks}
    for contender in contenders:
        if contender.model is None or contender.card is None:
            continue
        for group, (images, foreground) in groups.items():
            if images:
                name = f"{file_name(contender.name)}-{group}"
                made = picture(contender.model, contender.card, images, params, device, foreground)
                save_png(str(folder / f"{name}.png"), made)
                run.log_image(made, f"pca/{name}")


def record(run: tracking.Run, measured: Sequence[Measured], protocol: Protocol) -> None:
    """Scores go to each contender's LoggedModel, under metric names that are the same for all."""
    for one in measured:
        name, digest = one.name, one.digest
        run.log_dataset(name, digest, f"params/benchmarks.yaml#{name}", "benchmark")
        for contender in one.contenders:
            known = contender.card.model_id if contender.card else None
            model = run.ensure_model(known, contender.name, contender.facts, {"vitrail.kind": contender.kind})
            points = {score.metric: score.accuracy for score in one.scores if score.model == contender.name}
            points |= {score.metric: score.value for score in one.figures if score.model == contender.name}
            run.log_scores(model, points, (name, digest), tags=protocol.tags)


def earlier(outputs: Path) -> dict[str, Any]:
    """The ``scores.json`` of an earlier run, or nothing."""
    try:
        content = json.loads((outputs / "scores.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
