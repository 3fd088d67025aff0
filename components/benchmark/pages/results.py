"""What benchmark runs wrote, read back: one column a benchmark, task and method, whatever the metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.evaluation.statistics.gate import FEW, Column, ScoreEntry, by_column, read_scores

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Results:
    """Several runs together; the models of a second run that are named as one before carry the folder's name."""

    scores: dict[tuple[str, Column], ScoreEntry]  # by model and column
    right: dict[tuple[str, Column], npt.NDArray[np.bool_]]  # whether each image was right
    paired: dict[tuple[str, Column], Values] = field(default_factory=dict)  # a value each case, NaN where it has none
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # of training, by model
    pictures: dict[str, dict[str, Path]] = field(default_factory=dict)  # model -> group -> file of its PCA
    digests: dict[str, str] = field(default_factory=dict)  # of benchmarks
    efficiency: list[dict[str, Any]] = field(default_factory=list)  # figures of few labels, as scores.json has them

    @property
    def models(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(model for model, _ in self.scores))

    @property
    def columns(self) -> list[Column]:
        """In order, without those of few labels, which have tables of their own."""
        return list(dict.fromkeys(column for _, column in self.scores if not column[2].startswith(FEW)))

    def entry_of(self, column: Column) -> ScoreEntry:
        """Any model's figure of a column."""
        return next(entry for (_, where), entry in self.scores.items() if where == column)


def load_results(folders: Sequence[Path]) -> Results:
    """The scores and outcomes of ``folders``.

    Raises:
        VitrailError: a folder holds no benchmark, or two cannot be put into one column.
    """
    found = Results({}, {})
    seen: dict[str, tuple[str, dict[str, Any], Path]] = {}  # benchmark -> digest, protocol, folder
    for folder in folders:
        content, outcomes, paired = _read(folder)
        protocol = content.get("protocol")
        if not isinstance(protocol, dict):
            raise VitrailError(f"{folder}: its scores name no protocol; run the benchmark again")
        for name, about in content["benchmarks"].items():
            _same(name, about["digest"], protocol, folder, seen)
            found.digests[name] = about["digest"]
        taken = {model for model, _ in found.scores}

        def named(model: str, taken: set[str] = taken, folder: Path = folder) -> str:
            return model if model not in taken else f"{model} ({folder})"

        mine = by_column(content)
        for (model, column), entry in mine.items():
            found.scores[named(model), column] = entry
        few = (row for row in content.get("few_shot", []) if "method" in row)
        found.efficiency.extend(row | {"model": named(row["model"])} for row in few)
        for row in outcomes:
            found.right[named(row["model"]), _column(row)] = np.array(row["right"], bool)
        for row in paired:
            values = [np.nan if value is None else value for value in row["values"]]
            found.paired[named(row["model"]), _column(row)] = np.array(values, np.float64)
        found.curves.update({named(model): points for model, points in content.get("training", {}).items()})
        for model in dict.fromkeys(model for model, _ in mine):
            if shown := _pictures(folder / "pca", model):
                found.pictures[named(model)] = shown
    return found


def _column(row: dict[str, Any]) -> Column:
    return row["benchmark"], row["task"], row["method"]


def _pictures(folder: Path, model: str) -> dict[str, Path]:
    """The PCA pictures of ``model`` by group, as the stage names their files."""
    start = f"{file_name(model)}-"
    return {path.stem.removeprefix(start): path for path in sorted(folder.glob("*.png")) if path.name.startswith(start)}


def file_name(model: str) -> str:
    """A model's name in the names of files."""
    return model.replace(" ", "-").replace("/", "-")


def _read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    content = read_scores(folder)
    try:
        outcomes: list[dict[str, Any]] = pq.read_table(folder / "outcomes.parquet").to_pylist()
        paired = folder / "paired.parquet"
        return content, outcomes, pq.read_table(paired).to_pylist() if paired.is_file() else []
    except (OSError, ValueError) as fault:
        raise VitrailError(f"{folder}: no scores of the benchmark stage ({fault}); run it first") from None


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
