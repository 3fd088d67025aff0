"""Revisited Oxford and Paris (Radenovic et al. 2018): mAP and mP@k of the easy, medium and hard protocols.

The ground truth names for each query the easy, hard and junk images of the database. Junk images are taken out of the
ranking. Easy: easy ones are right, hard ones junk. Medium: both are right. Hard: hard ones are right, easy ones junk.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError

LEVELS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # right, junk
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
RANKS = (1, 5, 10)


@dataclass(frozen=True)
class GroundTruth:
    """What the official file holds."""

    database: list[str]  # image names
    queries: list[str]
    marks: list[dict[str, npt.NDArray[np.int64]]]  # by query: easy, hard, junk; rows of the database
    boxes: list[tuple[float, float, float, float] | None]  # px: left, top, right, bottom of the query's object


class Level(NamedTuple):
    """Shares of 0 ... 1, over the queries that have something to find."""

    map: float
    precision: dict[int, float]  # mP@k
    queries: int


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


def score(similarities: npt.NDArray[np.floating], truth: GroundTruth, ranks: Sequence[int] = RANKS) -> dict[str, Level]:
    """The three levels from similarities [queries, database]; equal ones are in the database's order, as there.

    Raises:
        VitrailError: another shape, or numbers that are not finite.
    """
    if similarities.shape != (len(truth.queries), len(truth.database)):
        raise VitrailError(
            f"revisited retrieval: similarities {similarities.shape} of {len(truth.queries)} queries and "
            f"{len(truth.database)} images"
        )
    if not np.isfinite(similarities).all():
        raise VitrailError("revisited retrieval: similarities hold NaN or infinity; the network has diverged")
    order = np.argsort(-similarities, axis=1, kind="stable")
    found = {}
    for level, (right, junk) in LEVELS.items():
        precisions, at = [], []
        for ranking, marks in zip(order, truth.marks, strict=True):
            wanted = np.concatenate([marks[name] for name in right])
            if len(wanted):
                kept = ranking[~np.isin(ranking, np.concatenate([marks[name] for name in junk]))]
                places = np.flatnonzero(np.isin(kept, wanted))
                precisions.append(trapezoid_precision(places))
                at.append([_precision_at(places + 1, k) for k in ranks])
        means = np.mean(at, axis=0) if at else np.full(len(ranks), np.nan)
        found[level] = Level(
            float(np.mean(precisions)) if precisions else float("nan"),
            dict(zip(ranks, means.tolist(), strict=True)),
            len(precisions),
        )
    return found


def trapezoid_precision(places: npt.NDArray[np.integer]) -> float:
    """Average precision from the zero-based places of the right images, by the trapezoid rule as the official code."""
    found = np.arange(len(places))
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    after = (found + 1) / (places + 1)
    return float((before + after).sum() / 2 / len(places))


def _precision_at(places: npt.NDArray[np.integer], k: int) -> float:
    """Precision among the first k, or among as many as reach the last right image if that is earlier."""
    reach = min(int(places.max()), k)
    return float((places <= reach).sum() / reach)
