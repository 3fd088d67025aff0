"""What checkpoints must reach: ``params/gate.yaml``, and the rows of it that they fall short of."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from components.benchmark.results import Results
from components.params import Strict

Bound = Annotated[float, Field(ge=0, le=1e6)]


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


def shortfalls(found: Results, gate: GateParams, only: str | None = None) -> list[str]:
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
        scores = {
            model: entry
            for (model, where), entry in found.scores.items()
            if where == column and (entry.kind == "checkpoint" if wanted is None else model == wanted)
        }
        name = f"{wanted or 'every checkpoint'}, {'/'.join(column)}"
        if not scores:
            lines.append(f"{name}: nothing was measured; {row.asked} is asked for")
        for model, entry in scores.items():
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
