"""What one method made of the test images of one benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.benchmark.methods.figure import Figure


class Outcome(NamedTuple):
    """What a method made of the test images."""

    right: npt.NDArray[np.bool_]  # [M]
    cost: float | None = None  # the probe's
    setting: str = ""  # what was chosen among several


def outcome_table(found: Mapping[str, Mapping[str, Mapping[tuple[str, str], Outcome]]]) -> pa.Table:
    """benchmark -> contender -> (task, method) -> outcome as a table; ``right`` is a list over the test images."""
    rows = [
        {"benchmark": name, "model": model, "task": task, "method": method, "right": one.right.tolist()}
        for name, models in found.items()
        for model, outcomes in models.items()
        for (task, method), one in outcomes.items()
    ]
    text = pa.string()
    schema = pa.schema(
        [("benchmark", text), ("model", text), ("task", text), ("method", text), ("right", pa.list_(pa.bool_()))],
        metadata={"vitrail.table": "outcomes", "vitrail.version": "1"},
    )
    return pa.Table.from_pylist(rows, schema=schema)


def paired_table(figures: Sequence[Figure]) -> pa.Table:
    """The values by case of all ``figures`` that have some."""
    rows = [
        {"benchmark": one.benchmark, "model": one.model, "task": one.task, "method": one.method, "values": one.paired}
        for one in figures
        if one.paired
    ]
    text = pa.string()
    schema = pa.schema(
        [("benchmark", text), ("model", text), ("task", text), ("method", text), ("values", pa.list_(pa.float64()))],
        metadata={"vitrail.table": "paired", "vitrail.version": "1"},
    )
    return pa.Table.from_pylist(rows, schema=schema)
