"""What checkpoints must reach before they are used: rows of ``params/gate.yaml`` beside scores of the benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from components.errors import VitrailError
from components.params import Strict

FEW, BALANCED = "fewshot", "_balanced"  # the beginning and the end of methods of label efficiency
Column = tuple[str, str, str]  # benchmark, task, method
Bound = Annotated[float, Field(ge=0, le=1e6)]


class ScoreEntry(NamedTuple):
    """One figure of one model; ``low`` and ``high`` are None where there is no interval."""

    kind: str  # of the contender
    value: float
    low: float | None
    high: float | None
    protocol: str
    unit: str = "%"
    lower_is_better: bool = False

    @property
    def cell(self) -> str:
        """As tables show it."""
        places = 1 if self.unit == "%" else 3
        interval = "" if self.low is None else f" ({self.low:.{places}f} to {self.high:.{places}f})"
        return f"{self.value:.{places}f}{interval}"

    @property
    def amount(self) -> str:
        """The value with its unit."""
        return f"{self.value:.1f}" if self.unit == "%" else f"{self.value:.3f} {self.unit}".rstrip()


Scores = Mapping[tuple[str, Column], ScoreEntry]  # by model and column


def read_scores(folder: Path) -> dict[str, Any]:
    """``scores.json`` of what the benchmark stage wrote.

    Raises:
        VitrailError: there is none, or it is damaged.
    """
    try:
        content: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    except (OSError, ValueError) as fault:
        raise VitrailError(f"{folder}: no scores of the benchmark stage ({fault}); run it first") from None
    return content


def by_column(content: Mapping[str, Any]) -> dict[tuple[str, Column], ScoreEntry]:
    """The figures of one ``scores.json``, accuracies and others, by model and column."""
    return {(row["model"], (row["benchmark"], row["task"], row["method"])): entry for row, entry in _entries(content)}


def _entries(content: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], ScoreEntry]]:
    for row in content["scores"]:
        yield row, ScoreEntry(row["kind"], row["accuracy"], row["low"], row["high"], row["protocol"])
    for row in [*content.get("ranking", []), *content.get("dense", []), *content.get("few_shot", [])]:
        if "method" not in row:
            continue  # label efficiency as earlier versions wrote it
        interval = row["value"], row["low"], row["high"]
        more = row.get("unit", "%"), row.get("lower_is_better", False)
        yield row, ScoreEntry(row.get("kind", "checkpoint"), *interval, row["protocol"], *more)


class GateRow(Strict):
    """What a checkpoint must reach: at least so much, or at most where less is better (an error in metres)."""

    model: str | None = None  # by the table's name; null: every checkpoint
    benchmark: str
    task: str
    method: str  # as in scores.json
    at_least: Bound | None = None  # in the metric's unit: percent, metres
    at_most: Bound | None = None
    protocol: str | None = None  # name of the protocol it was set for, as "quick v1"

    @model_validator(mode="after")
    def _one_bound(self) -> GateRow:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give one of at_least and at_most")
        return self

    @property
    def asked(self) -> str:
        """The bound in words."""
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"


class GateParams(Strict):
    """``params/gate.yaml``."""

    rows: list[GateRow] = []


def shortfalls(scores: Scores, gate: GateParams, only: str | None = None) -> list[str]:
    """One line for each row of the gate that a checkpoint falls short of, or that nothing was measured for.

    Args:
        only: a checkpoint's name in the table; the others and rows of theirs do not count.
    """
    lines = []
    for row in gate.rows:
        if only is not None and row.model not in (None, only):
            continue
        column = row.benchmark, row.task, row.method
        wanted = only if row.model is None else row.model
        found = {
            model: entry
            for (model, where), entry in scores.items()
            if where == column and (entry.kind == "checkpoint" if wanted is None else model == wanted)
        }
        name = f"{wanted or 'every checkpoint'}, {'/'.join(column)}"
        if not found:
            lines.append(f"{name}: nothing was measured; {row.asked} is asked for")
        for model, entry in found.items():
            where = f"{model}, {'/'.join(column)}"
            if row.protocol is not None and not entry.protocol.startswith(f"{row.protocol} ("):
                lines.append(f"{where}: measured by {entry.protocol}, not {row.protocol}")
            elif entry.lower_is_better != (row.at_most is not None):
                better = "at_most" if entry.lower_is_better else "at_least"
                lines.append(f"{where}: {'less' if entry.lower_is_better else 'more'} is better; set {better}")
            elif (row.at_least is not None and entry.value < row.at_least) or (
                row.at_most is not None and entry.value > row.at_most
            ):
                lines.append(f"{where}: {entry.amount}, {row.asked} is asked for")
    return lines
