"""One figure of a method that is no share of right images: a mean average precision, an IoU, an error in metres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from components.evaluation.statistics.gate import BALANCED

NAMES = {
    "map": "mAP",
    "micro_ap": "micro-AP",
    "region": "J",
    "boundary": "F",
    "region_boundary": "J&F",
    "linear_miou": "linear on patches, mIoU",
    "linear_pixel_accuracy": "linear on patches, right pixels",
    "pixels_miou": "linear on pixels, mIoU",
    "pixels_pixel_accuracy": "linear on pixels, right pixels",
    "knn_miou": "kNN, mIoU",
    "knn_pixel_accuracy": "kNN, right pixels",
}
PARTS = {"rmse": "RMSE", "absrel": "relative error", "delta1": "within 1.25"}


@dataclass(frozen=True)
class Figure:
    """One figure; ``low`` and ``high`` are None where there is no interval."""

    model: str
    kind: str  # of the contender
    benchmark: str
    task: str  # a task of the benchmark, or "copies", "segmentation", "depth", "matching"
    method: str  # "map", "recall1", "linear_miou", "lin4_rmse"
    value: float
    low: float | None
    high: float | None
    cases: int  # queries, or pictures
    protocol: str
    unit: str = "%"  # "%", "m", or "" for a ratio
    lower_is_better: bool = False
    # One value a case, the same cases for every model, None where a case has none: what two models are paired by
    paired: tuple[float | None, ...] = ()

    @property
    def metric(self) -> str:
        """The name of the metric in MLflow."""
        return f"{self.benchmark}/{self.task}/{self.method}"

    def plain(self) -> dict[str, Any]:
        """As JSON, without the values by case."""
        found = asdict(self)
        del found["paired"]
        return found

    @property
    def cell(self) -> str:
        """As tables show it."""
        places = 1 if self.unit == "%" else 3
        interval = "" if self.low is None else f" ({self.low:.{places}f} to {self.high:.{places}f})"
        return f"{self.value:.{places}f}{interval}"


def method_name(method: str) -> str:
    """A method as tables name it."""
    if method.startswith("recall"):
        return f"R@{method.removeprefix('recall')}"
    if method.startswith("precision"):
        return f"mP@{method.removeprefix('precision')}"
    if method.startswith("pck"):
        return f"PCK@{int(method.removeprefix('pck')) / 100:g}"
    if method.endswith(BALANCED):
        return f"{method_name(method.removesuffix(BALANCED))}, balanced"
    if method.startswith("knn") and method[3:].isdigit():
        return f"{method[3:]}-NN"
    if method.endswith("_mce"):
        return f"{method.removesuffix('_mce')}, mCE"
    head, _, part = method.rpartition("_")
    if part in PARTS and head.startswith("lin"):
        blocks = head.removeprefix("lin")
        fitted = " on pixels" if blocks.endswith("pixels") else ""
        return f"lin. {blocks.removesuffix('pixels')}{fitted}, {PARTS[part]}"
    return NAMES.get(method, method)


def figure_table(found: Sequence[Figure], title: str, note: str) -> str:
    """The figures in Markdown, a table a benchmark, a row a model; nothing where there are none."""
    parts = []
    for benchmark in dict.fromkeys(figure.benchmark for figure in found):
        ours = [figure for figure in found if figure.benchmark == benchmark]
        cells = {(figure.task, figure.method): figure for figure in ours}
        units = {cell: f" [{one.unit or 'ratio'}]" if one.unit != "%" else "" for cell, one in cells.items()}
        heads = ["model", *[f"{task}, {method_name(method)}{units[task, method]}" for task, method in cells]]
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for model in dict.fromkeys(figure.model for figure in ours):
            own = {(figure.task, figure.method): figure.cell for figure in ours if figure.model == model}
            lines.append("| " + " | ".join([model, *[own.get(cell, "") for cell in cells]]) + " |")
        about = f"Protocol {ours[0].protocol}. In percent where no unit is named; {note}."
        parts.append(f"\n### {benchmark}: {title}\n\n{about}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)
