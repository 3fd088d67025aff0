"""Scores as tables a person reads (Markdown, which a terminal shows as well) and as flat columns for Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from components.benchmark.methods.protocol import Protocol
from components.benchmark.methods.scoring import Score
from components.evaluation.sets.benchmarks import Benchmark


def markdown(
    scores: Sequence[Score],
    benchmarks: Sequence[Benchmark],
    majorities: Mapping[str, Mapping[str, float]],
    protocol: Protocol,
    confidence: float,
) -> str:
    """The comparison: for each benchmark the accuracies, then the differences from the baselines."""
    parts = []
    for benchmark in benchmarks:
        ours = [score for score in scores if score.benchmark == benchmark.name]
        shown = f"knn{protocol.params.knn.shown}"
        methods = [
            m for m in dict.fromkeys(s.method for s in ours) if m == shown or not m.removeprefix("knn").isdigit()
        ]
        cells = [(task, method) for task in benchmark.labels for method in methods]
        train, test = int((~benchmark.test).sum()), int(benchmark.test.sum())
        sizes = f"{train:,} training and {test:,} held-out images" if train else f"{test:,} images that test robustness"
        parts.append(f"### {benchmark.name}: {sizes}\n")
        parts.append(f"Protocol {protocol.label}. Accuracy in percent, with its {confidence:.0%} interval (Wilson).\n")
        if any(method.endswith("_test") for method in methods):
            parts.append(
                "'best on test': the setting was chosen on the test images, as the paper does, which overstates; "
                "'held-out choice': on training images that were held out.\n"
            )
        heads = [f"{task}, {_method(method)}" for task, method in cells]
        rows = [["majority class", *[f"{majorities[benchmark.name][task]:.1f}" for task, _ in cells]]]
        for model in dict.fromkeys(score.model for score in ours):
            own = {(score.task, score.method): score for score in ours if score.model == model}
            rows.append([model, *[f"{own[c].accuracy:.1f} ({own[c].low:.1f} to {own[c].high:.1f})" for c in cells]])
        parts.append(_table(["model", *heads], rows))
        rows = []
        for model in dict.fromkeys(score.model for score in ours if score.differences):
            own = {(score.task, score.method): score for score in ours if score.model == model}
            for number, difference in enumerate(own[cells[0]].differences):
                gaps = [own[cell].differences[number] for cell in cells]
                texts = [f"{g.value:+.1f} ({g.low:+.1f} to {g.high:+.1f}){' *' if g.better else ''}" for g in gaps]
                rows.append([f"{model} - {difference.against}", *texts])
        parts.append(
            f"Differences in percentage points on the same images, with their {confidence:.0%} interval (paired "
            "bootstrap); * marks those whose whole interval is above zero.\n"
        )
        parts.append(_table(["difference", *heads], rows))
    return "\n".join(parts)


def flat(scores: Sequence[Score]) -> pa.Table:
    """One row a score and baseline (``against`` is null for scores without a baseline)."""
    rows: list[dict[str, Any]] = []
    for score in scores:
        plain = score.plain()
        differences = plain.pop("differences") or [{}]
        for gap in differences:
            rows.append(
                plain
                | {
                    "against": gap.get("against"),
                    "difference": gap.get("value"),
                    "difference_low": gap.get("low"),
                    "difference_high": gap.get("high"),
                    "better": gap.get("better"),
                }
            )
    text, number = pa.string(), pa.float64()
    schema = pa.schema(
        [
            ("model", text),
            ("kind", text),
            ("benchmark", text),
            ("task", text),
            ("method", text),
            ("accuracy", number),
            ("low", number),
            ("high", number),
            ("test_images", pa.int64()),
            ("cost", number),
            ("setting", text),
            ("protocol", text),
            ("against", text),
            ("difference", number),
            ("difference_low", number),
            ("difference_high", number),
            ("better", pa.bool_()),
        ],
        metadata={"vitrail.table": "scores", "vitrail.version": "1"},
    )
    return pa.Table.from_pylist(rows, schema=schema)


def nested(scores: Sequence[Score]) -> dict[str, Any]:
    """Accuracies for ``dvc metrics show``: model -> benchmark -> task -> method."""
    found: dict[str, Any] = {}
    for score in scores:
        model = found.setdefault(score.model, {})
        model.setdefault(score.benchmark, {}).setdefault(score.task, {})[score.method] = score.accuracy
    return found


def _method(name: str) -> str:
    words = {"test": "best on test", "heldout": "held-out choice"}
    known = {"knn": "kNN", "grid": "linear grid", "logistic": "logistic grid", "linear": "linear"}
    stem, _, rule = name.partition("_")
    if rule in words:
        return f"{known.get(stem, stem)} ({words[rule]})"
    return f"{name.removeprefix('knn')}-NN" if name.startswith("knn") else name


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(heads), rule, *map(line, rows)]) + "\n"
