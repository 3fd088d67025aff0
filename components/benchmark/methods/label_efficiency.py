"""Label efficiency in the benchmark: figures of few labels a class, beside those of all labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.benchmark.features.contenders import Contender
from components.benchmark.methods.classify import FeatureSplit
from components.benchmark.methods.figure import Figure
from components.benchmark.methods.outcome import Outcome
from components.benchmark.methods.protocol import Protocol
from components.evaluation.image_level.few_shot import LINEAR, balanced_accuracy, few_shot
from components.evaluation.statistics.gate import BALANCED, FEW
from components.evaluation.statistics.intervals import Interval


@dataclass(frozen=True)
class FewFigure:
    """A figure with what it was measured from."""

    figure: Figure
    classifier: str  # "knn20", "linear"
    per_class: int | None  # labelled images a class; None: all training images
    balanced: bool  # balanced accuracy, else the plain one
    fewest: int | None = None  # images of the smallest class of a draw

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        more = {"classifier": self.classifier, "per_class": self.per_class, "fewest": self.fewest}
        return self.figure.plain() | more | {"balanced": self.balanced}


def few_figures(
    contender: Contender,
    where: tuple[str, str],
    side: FeatureSplit,
    outcomes: Mapping[str, Outcome],
    protocol: Protocol,
    confidence: float,
) -> list[FewFigure]:
    """The figures of one task, where the protocol has few labels; those of all labels are balanced accuracies.

    Args:
        where: benchmark and task.
        outcomes: by method, of classifiers that were fitted on all labels.
    """
    params, found = protocol.params.few_shot, []
    if params is None:
        return []

    def figure(method: str, value: Interval, cases: int, sure: bool = True) -> Figure:
        parts = [round(100 * part, 3) for part in value]
        low, high = (parts[1], parts[2]) if sure else (None, None)
        return Figure(contender.name, contender.kind, *where, method, parts[0], low, high, cases, protocol.label)

    drawn = few_shot(side.train, side.test, params, protocol.params.knn.temperature, confidence)
    for (name, count), one in drawn.items():
        for value, suffix in ((one.accuracy, ""), (one.balanced, BALANCED)):
            made = figure(f"{FEW}{count}_{name}{suffix}", value, params.tries)
            found.append(FewFigure(made, name, count, bool(suffix), one.fewest))
    for name in (f"knn{protocol.params.knn.shown}", LINEAR):
        exact = balanced_accuracy(outcomes[name].right, side.test.labels)
        made = figure(f"{name}{BALANCED}", Interval(exact, np.nan, np.nan), len(side.test.labels), sure=False)
        found.append(FewFigure(made, name, None, True))
    return found


def few_tables(found: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[list[str]]]:
    """Balanced accuracies by (benchmark, task), a row a model and classifier, the head first.

    Args:
        found: as :meth:`FewFigure.plain` gives them.
    """
    tables: dict[tuple[str, str], list[list[str]]] = {}
    for where in dict.fromkeys((one["benchmark"], one["task"]) for one in found):
        ours = [one for one in found if (one["benchmark"], one["task"]) == where and one["balanced"]]
        counts = sorted({one["per_class"] for one in ours if one["per_class"] is not None})
        fewest = {count: min(one["fewest"] for one in ours if one["per_class"] == count) for count in counts}
        heads = [
            f"{count} a class" + (f" (least {fewest[count]})" if fewest[count] < count else "") for count in counts
        ]
        cells = {(one["model"], _classifier(one["classifier"]), one["per_class"]): _cell(one) for one in ours}
        rows = dict.fromkeys((model, name) for model, name, _ in cells)
        tables[where] = [
            ["model", "by", *heads, "all labels"],
            *[[*row, *[cells.get((*row, count), "") for count in [*counts, None]]] for row in rows],
        ]
    return tables


def few_shot_table(found: Sequence[FewFigure], confidence: float) -> str:
    """The tables in Markdown; nothing where none was measured."""
    parts = []
    for (benchmark, task), (heads, *rows) in few_tables([one.plain() for one in found]).items():
        lines = ["| " + " | ".join(row) + " |" for row in (heads, *rows)]
        lines.insert(1, "|" + "---|" * len(heads))
        parts.append(
            f"\n### {benchmark}: label efficiency, {task}\n\nBalanced accuracy in percent with few labelled images a "
            f"class: the mean over draws with its {confidence:.0%} interval (Student).\n\n" + "\n".join(lines) + "\n"
        )
    return "\n".join(parts)


def _classifier(name: str) -> str:
    return f"{name.removeprefix('knn')}-NN" if name.startswith("knn") else name


def _cell(one: Mapping[str, Any]) -> str:
    interval = "" if one["low"] is None else f" ({one['low']:.1f} to {one['high']:.1f})"
    return f"{one['value']:.1f}{interval}"
