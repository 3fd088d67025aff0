"""The comparison as one HTML page, without scripts or outside files."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from components.benchmark.methods.figure import method_name
from components.benchmark.methods.label_efficiency import few_tables
from components.benchmark.pages.compare import Test, missed, rows_of, test_rows
from components.benchmark.pages.results import Results
from components.evaluation.features.extract import square
from components.evaluation.sets.labelled_set import Benchmark
from components.evaluation.statistics.gate import Column
from components.images.decode import RGB, encode_jpeg

SHOWN = 8  # images a model and column
SIDE = 96  # px
WIDTH, HEIGHT, EDGE = 460, 220, 36  # px of a curve's picture
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
STYLE = (
    "body{font:15px system-ui;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left}figure{display:inline-block;margin:.4em}"
    "figcaption{font-size:.8em;color:#444}img{max-width:100%}"
)


class Line(NamedTuple):
    """A curve: its name and its points (step, percent)."""

    name: str
    points: list[tuple[float, float]]


def page(found: Results, tests: Sequence[Test], benchmarks: Mapping[str, Benchmark] | None = None) -> str:
    """Table, tests, curves of training, PCA pictures side by side, and images that were got wrong.

    Args:
        benchmarks: those whose images may be shown, by name.
    """
    labels = ", ".join(sorted({entry.protocol for entry in found.scores.values()}))
    parts = [
        f"<h1>Checkpoints compared</h1><p>Protocol {html.escape(labels)}. In percent where no unit is named, with "
        "intervals.</p>",
        _table(rows_of(found)),
        "<h2>Paired tests</h2><p>McNemar's exact test of accuracies on the same images; other metrics by flipping the "
        "signs of differences by query or picture (of mIoU: the pictures' own). The last column is corrected for "
        f"{len(tests)} tests.</p>",
        _table(test_rows(found, tests)),
        _efficiency(found),
        _curves(found),
        _pca(found),
        _errors(found, benchmarks or {}),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Checkpoints compared</title>'
        f"<style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows[1:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _efficiency(found: Results) -> str:
    """Of each task a curve a model and classifier over labelled images a class, and the table."""
    parts = []
    for (name, task), rows in few_tables(found.efficiency).items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for one in found.efficiency:
            if (one["benchmark"], one["task"]) == (name, task) and one["balanced"] and one["per_class"] is not None:
                points = lines.setdefault(f"{one['model']}, {method_name(one['classifier'])}", [])
                points.append((one["per_class"], one["value"]))
        drawn = curve([Line(line, sorted(points)) for line, points in lines.items()], even_ratios=True)
        caption = f"{html.escape(f'{name} {task}')}: balanced accuracy, %, over labelled images a class (even ratios)"
        parts.append(f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>{_table(rows)}")
    about = (
        "<h2>Label efficiency</h2><p>Balanced accuracy with few labelled images a class: the mean over draws with its "
        "interval, and with all labels.</p>"
    )
    return about + "".join(parts) if parts else ""


def _curves(found: Results) -> str:
    if not found.curves:
        return ""
    parts = []
    for key, name in (("knn", "kNN, %"), ("miou", "dense probe, mIoU, %")):
        lines = [Line(model, [(p["step"], 100 * p[key]) for p in points]) for model, points in found.curves.items()]
        parts.append(f"<figure>{curve(lines)}<figcaption>{name} over steps</figcaption></figure>")
    return (
        "<h2>Training</h2><p>The probes of each run, on the training side: dense quality can fall while kNN still "
        f"rises.</p>{''.join(parts)}"
    )


def curve(lines: Sequence[Line], even_ratios: bool = False) -> str:
    """An SVG of ``lines`` with the ends of both axes; with ``even_ratios`` equal steps across are equal factors."""
    points = [point for line in lines for point in line.points]
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    across = math.log if even_ratios else float

    def at(step: float, value: float) -> str:
        share = (across(step) - across(left)) / ((across(right) - across(left)) or 1)
        x = EDGE + share * (WIDTH - 2 * EDGE)
        y = HEIGHT - EDGE - (value - low) / ((high - low) or 1) * (HEIGHT - 2 * EDGE)
        return f"{x:.1f},{y:.1f}"

    drawn = []
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(at(*point) for point in line.points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        name = html.escape(line.name)
        drawn.append(f'<text x="{EDGE + 4}" y="{14 + 13 * number}" fill="{colour}" font-size="12">{name}</text>')
    ends = [
        (EDGE, HEIGHT - 20, f"{left:,.0f}"),
        (WIDTH - EDGE - 30, HEIGHT - 20, f"{right:,.0f}"),
        (2, HEIGHT - EDGE, f"{low:.1f}"),
        (2, EDGE, f"{high:.1f}"),
    ]
    texts = "".join(f'<text x="{x}" y="{y}" font-size="11">{text}</text>' for x, y, text in ends)
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(drawn)}{texts}</svg>'


def _pca(found: Results) -> str:
    groups = list(dict.fromkeys(group for shown in found.pictures.values() for group in shown))
    parts = []
    for group in groups:
        figures = [
            f'<figure><img src="data:image/png;base64,{base64.b64encode(shown[group].read_bytes()).decode()}" '
            f'alt="{html.escape(model)}"><figcaption>{html.escape(model)}</figcaption></figure>'
            for model, shown in found.pictures.items()
            if group in shown
        ]
        parts.append(f"<h3>{html.escape(group)}</h3>{''.join(figures)}")
    about = "<h2>PCA of patch features</h2><p>One basis a picture: colours can be compared within a picture.</p>"
    return about + "".join(parts) if parts else ""


def _errors(found: Results, benchmarks: Mapping[str, Benchmark]) -> str:
    parts = []
    for column in _one_a_task(found):
        name, task, method = column
        benchmark = benchmarks.get(name)
        if benchmark is None or task not in benchmark.labels:
            continue
        for model in found.models:
            if (model, column) in found.right:
                rows = [int(benchmark_row) for benchmark_row in benchmark.test.nonzero()[0]]
                shown = [rows[number] for number in missed(found, model, column, SHOWN)]
                names = benchmark.class_names[task]
                figures = [_thumb(benchmark.images.rgb, row, names[int(benchmark.labels[task][row])]) for row in shown]
                title = f"{model}: {' '.join((name, task, method))}"
                parts.append(f"<h3>{html.escape(title)}</h3>{''.join(figures)}")
    about = (
        "<h2>Errors</h2><p>Held-out images that a model gets wrong and most others get right, each with its "
        "true class.</p>"
    )
    return about + "".join(parts) if parts else ""


def _one_a_task(found: Results) -> list[Column]:
    """Of each task the linear probe, or the first method."""
    chosen: dict[tuple[str, str], Column] = {}
    for column in (column for column in found.columns if any(where == column for _, where in found.right)):
        if column[:2] not in chosen or column[2] == "linear":
            chosen[column[:2]] = column
    return list(chosen.values())


def _thumb(read: Callable[[int], RGB], row: int, truth: str) -> str:
    data = base64.b64encode(encode_jpeg(square(read(row), SIDE), 80)).decode()
    text = html.escape(truth)
    return f'<figure><img src="data:image/jpeg;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
