"""The ground truth of revisited Oxford and Paris (Radenovic et al. 2018), in its official layout.

It names for each query the easy, hard and junk images of the database.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError


@dataclass(frozen=True)
class GroundTruth:
    """What the official file holds."""

    database: list[str]  # image names
    queries: list[str]
    marks: list[dict[str, npt.NDArray[np.int64]]]  # by query: easy, hard, junk; rows of the database
    boxes: list[tuple[float, float, float, float] | None]  # px: left, top, right, bottom of the query's object


class _NoCode(pickle.Unpickler):
    """Reads numbers, text, lists and dictionaries; what names anything else could run code, and is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def load_ground_truth(path: Path) -> GroundTruth:
    """The official layout (``imlist``, ``qimlist``, ``gnd`` with ``easy``, ``hard``, ``junk``, ``bbx``), JSON, pickle.

    Of a pickle only plain values are read; one that could run code is refused.

    Raises:
        VitrailError: the file is missing, not of that layout, or a row is beyond the database.
    """
    try:
        with open(path, "rb") as file:
            content = json.load(file) if path.suffix == ".json" else _NoCode(file).load()
    except FileNotFoundError:
        raise VitrailError(f"{path}: no such ground truth") from None
    except (ValueError, EOFError, IndexError, KeyError, pickle.UnpicklingError) as fault:
        raise VitrailError(
            f"{path}: cannot be read as plain values ({fault}); convert it to JSON with keys imlist, qimlist and gnd"
        ) from None
    try:
        database, queries = [str(name) for name in content["imlist"]], [str(name) for name in content["qimlist"]]
        marks = [
            {name: np.asarray(one[name], np.int64).reshape(-1) for name in ("easy", "hard", "junk")}
            for one in content["gnd"]
        ]
        boxes = [tuple(float(v) for v in one["bbx"]) if one.get("bbx") else None for one in content["gnd"]]
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise VitrailError(
            f"{path}: not the official layout (imlist, qimlist, gnd with easy, hard, junk, bbx): {fault!r}"
        ) from None
    if len(marks) != len(queries):
        raise VitrailError(f"{path}: {len(queries)} queries and {len(marks)} entries of gnd")
    for name, one in zip(queries, marks, strict=True):
        rows = np.concatenate(list(one.values()))
        if len(rows) and (rows.min() < 0 or rows.max() >= len(database)):
            raise VitrailError(f"{path}: query {name} names image {rows.max()} of {len(database)}")
        if len(np.unique(rows)) != len(rows):
            raise VitrailError(f"{path}: query {name} marks an image twice")
    return GroundTruth(database, queries, marks, boxes)  # type: ignore[arg-type]  # four numbers, or what fails later
