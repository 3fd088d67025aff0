"""Benchmark runs side by side: one table, paired tests, one HTML page, and a gate.

python -m components.benchmark compare data/benchmark other/benchmark --html compare.html --gate params/gate.yaml

Each folder is what ``run`` wrote. Scores share a column only if benchmark, its digest, task, method and protocol are
the same.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from components.errors import VitrailError
from components.evaluation.significance import holm, mcnemar
from components.params import Strict

Column = tuple[str, str, str]  # benchmark, task, method


class GateRow(Strict):
    """What a checkpoint must reach."""

    model: str | None = None  # by the table's name; null: every checkpoint
    benchmark: str
    task: str
    method: str  # as in scores.json
    at_least: float = Field(ge=0, le=100)  # percent
    protocol: str | None = None  # name of the protocol it was set for, as "quick v1"


class GateParams(Strict):
    """``params/gate.yaml``."""

    rows: list[GateRow] = []


@dataclass(frozen=True)
class Results:
    """Several runs together; the models of a second run that are named as one before carry the folder's name."""

    scores: dict[tuple[str, Column], dict[str, Any]]  # (model, column) -> entry of scores.json
    right: dict[tuple[str, Column], npt.NDArray[np.bool_]]

    @property
    def models(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(model for model, _ in self.scores))

    @property
    def columns(self) -> list[Column]:
        """In order."""
        return list(dict.fromkeys(column for _, column in self.scores))


class Test(NamedTuple):
    """Two models on one column: the difference in percentage points, and p-values before and after correction."""

    ours: str
    theirs: str
    column: Column
    difference: float
    p: float
    corrected: float


def load_results(folders: Sequence[Path]) -> Results:
    """The scores and outcomes of ``folders``.

    Raises:
        VitrailError: a folder holds no benchmark, or two cannot be put into one column.
    """
    scores: dict[tuple[str, Column], dict[str, Any]] = {}
    right: dict[tuple[str, Column], npt.NDArray[np.bool_]] = {}
    seen: dict[str, tuple[str, dict[str, Any], Path]] = {}  # benchmark -> digest, protocol, folder
    for folder in folders:
        content, outcomes = _read(folder)
        protocol = content.get("protocol")
        if not isinstance(protocol, dict):
            raise VitrailError(f"{folder}: its scores name no protocol; run the benchmark again")
        for name, about in content["benchmarks"].items():
            _same(name, about["digest"], protocol, folder, seen)
        taken = {model for model, _ in scores}
        for score in content["scores"]:
            model = score["model"] if score["model"] not in taken else f"{score['model']} ({folder})"
            scores[model, (score["benchmark"], score["task"], score["method"])] = score
        for row in outcomes:
            model = row["model"] if row["model"] not in taken else f"{row['model']} ({folder})"
            right[model, (row["benchmark"], row["task"], row["method"])] = np.array(row["right"], bool)
    return Results(scores, right)


def _read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    try:
        content: dict[str, Any] = json.loads((folder / "scores.json").read_text())
        outcomes: list[dict[str, Any]] = pq.read_table(folder / "outcomes.parquet").to_pylist()
    except (OSError, ValueError) as fault:
        raise VitrailError(f"{folder}: no scores of the benchmark stage ({fault}); run it first") from None
    return content, outcomes


def _same(
    name: str,
    digest: str,
    protocol: dict[str, Any],
    folder: Path,
    seen: dict[str, tuple[str, dict[str, Any], Path]],
) -> None:
    """Refuse a benchmark or protocol that differs from the one already seen."""
    first = seen.setdefault(name, (digest, protocol, folder))
    labels = [f"{one['name']} v{one['version']} ({one['digest'][:8]})" for one in (first[1], protocol)]
    if first[1]["digest"] != protocol["digest"]:
        raise VitrailError(
            f"{name}: {first[2]} was measured by protocol {labels[0]}, {folder} by {labels[1]}; two protocols cannot "
            "share a column: run one of them again"
        )
    if first[0] != digest:
        raise VitrailError(f"{name}: {first[2]} and {folder} hold scores of different images or labels of that name")


def paired_tests(found: Results) -> list[Test]:
    """McNemar's test of every pair of models on every column, corrected together by Holm's method."""
    raw = []
    for column in found.columns:
        models = [model for model in found.models if (model, column) in found.right]
        for ours, theirs in combinations(models, 2):
            a, b = found.right[ours, column], found.right[theirs, column]
            raw.append((ours, theirs, column, 100 * float(a.mean() - b.mean()), mcnemar(a, b)))
    corrected = holm([one[4] for one in raw])
    return [Test(*one, value) for one, value in zip(raw, corrected, strict=True)]


def shortfalls(found: Results, gate: GateParams) -> list[str]:
    """One line for each row of the gate that a checkpoint falls short of, or that nothing was measured for."""
    lines = []
    for row in gate.rows:
        column = row.benchmark, row.task, row.method
        scores = {
            model: score
            for (model, where), score in found.scores.items()
            if where == column and (score["kind"] == "checkpoint" if row.model is None else model == row.model)
        }
        name = f"{row.model or 'every checkpoint'}, {'/'.join(column)}"
        if not scores:
            lines.append(f"{name}: nothing was measured; at least {row.at_least:g} is asked for")
        for model, score in scores.items():
            if row.protocol is not None and not score["protocol"].startswith(f"{row.protocol} ("):
                lines.append(f"{model}, {'/'.join(column)}: measured by {score['protocol']}, not {row.protocol}")
            elif score["accuracy"] < row.at_least:
                lines.append(
                    f"{model}, {'/'.join(column)}: {score['accuracy']:.1f}, at least {row.at_least:g} is asked for"
                )
    return lines


def rows_of(found: Results) -> list[list[str]]:
    """The table, its head first."""
    heads = ["model", *[" ".join(column) for column in found.columns]]
    return [heads, *[[model, *[_cell(found, model, column) for column in found.columns]] for model in found.models]]


def _cell(found: Results, model: str, column: Column) -> str:
    score = found.scores.get((model, column))
    return "" if score is None else f"{score['accuracy']:.1f} ({score['low']:.1f} to {score['high']:.1f})"


def test_rows(tests: Sequence[Test]) -> list[list[str]]:
    """The paired tests as a table, its head first."""
    heads = ["models", "column", "difference", "p", "p corrected (Holm)"]
    return [
        heads,
        *[
            [f"{t.ours} - {t.theirs}", " ".join(t.column), f"{t.difference:+.1f}", f"{t.p:.3g}", f"{t.corrected:.3g}"]
            for t in tests
        ],
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def page(found: Results, tests: Sequence[Test]) -> str:
    """One HTML page without scripts or outside files."""

    def table(rows: Sequence[Sequence[str]]) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows[1:])
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    labels = ", ".join(sorted({score["protocol"] for score in found.scores.values()}))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Checkpoints compared</title>'
        "<style>body{font:15px system-ui;margin:2em}table{border-collapse:collapse;margin:1em 0}"
        "td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left}</style>"
        f"<h1>Checkpoints compared</h1><p>Protocol {html.escape(labels)}. Accuracy in percent with its interval.</p>"
        f"{table(rows_of(found))}<h2>Paired tests</h2><p>McNemar's exact test on the same images; the last column is "
        f"corrected for {len(tests)} tests.</p>{table(test_rows(tests))}</html>\n"
    )
