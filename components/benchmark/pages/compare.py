"""Checkpoints side by side: one table, paired tests, one HTML page, and a gate.

python -m components.benchmark compare data/benchmark other/benchmark --html compare.html --gate params/gate.yaml
python -m components.benchmark compare data/pretrain/vitt dinov2_vits14_pretrain.pth --out data/compare

Each argument is a folder that ``run`` wrote, or a model, which is then measured first. Scores share a column only if
benchmark, its digest, task, method and protocol are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from components.benchmark.methods.figure import method_name
from components.benchmark.pages.results import Results
from components.evaluation.statistics.gate import Column
from components.evaluation.statistics.significance import holm, mcnemar, sign_flip

SCORES = "scores.json"


class Test(NamedTuple):
    """Two models on one column: the difference in the metric's unit, and p-values before and after correction."""

    ours: str
    theirs: str
    column: Column
    difference: float
    p: float
    corrected: float


def divided(sources: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The folders of results among ``sources``, and the models."""
    folders = [source for source in sources if "://" not in source and (Path(source) / SCORES).is_file()]
    gone = [source for source in sources if source not in folders]
    return [Path(folder) for folder in folders], gone


def paired_tests(found: Results) -> list[Test]:
    """Every pair of models on every column, corrected together by Holm's method.

    Accuracies by McNemar's exact test on the images both saw; other metrics by flipping the signs of their differences
    by query or picture.
    """
    raw = []
    for column in found.columns:
        models = [model for model in found.models if (model, column) in found.right]
        for ours, theirs in combinations(models, 2):
            a, b = found.right[ours, column], found.right[theirs, column]
            raw.append((ours, theirs, column, 100 * float(a.mean() - b.mean()), mcnemar(a, b)))
        models = [model for model in found.models if (model, column) in found.paired]
        for ours, theirs in combinations(models, 2):
            gap = found.scores[ours, column].value - found.scores[theirs, column].value
            p = sign_flip(found.paired[ours, column], found.paired[theirs, column])
            raw.append((ours, theirs, column, gap, p))
    corrected = holm([one[4] for one in raw])
    return [Test(*one, value) for one, value in zip(raw, corrected, strict=True)]


def heads_of(found: Results) -> list[str]:
    """The columns' names, with a unit where it is not percent."""
    named = []
    for benchmark, task, method in found.columns:
        unit = found.entry_of((benchmark, task, method)).unit
        suffix = "" if unit == "%" else f" [{unit or 'ratio'}]"
        named.append(f"{benchmark} {task} {method_name(method)}{suffix}")
    return named


def rows_of(found: Results) -> list[list[str]]:
    """The table, its head first."""

    def cell(model: str, column: Column) -> str:
        return found.scores[model, column].cell if (model, column) in found.scores else ""

    heads = ["model", *heads_of(found)]
    return [heads, *[[model, *[cell(model, column) for column in found.columns]] for model in found.models]]


def test_rows(found: Results, tests: Sequence[Test]) -> list[list[str]]:
    """The paired tests as a table, its head first."""
    heads = ["models", "column", "difference", "p", "p corrected (Holm)"]
    names = dict(zip(found.columns, heads_of(found), strict=True))
    rows = [heads]
    for t in tests:
        gap = f"{t.difference:+.1f}" if found.entry_of(t.column).unit == "%" else f"{t.difference:+.3f}"
        rows.append([f"{t.ours} - {t.theirs}", names[t.column], gap, f"{t.p:.3g}", f"{t.corrected:.3g}"])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def missed(found: Results, model: str, column: Column, count: int) -> list[int]:
    """The test images that ``model`` gets wrong and most others get right, the first of equals; at most ``count``."""
    every = [right for (_, where), right in found.right.items() if where == column]
    ours = found.right[model, column]
    others = np.sum(every, axis=0)
    wrong = np.flatnonzero(~ours)
    return [int(row) for row in wrong[np.argsort(-others[wrong], kind="stable")][:count]]
