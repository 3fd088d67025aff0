"""Dense quality over training against the global score: both from the probes that a run left in ``curve.json``.

Patch features can decay while kNN accuracy still rises (DINOv3 reports it). A table shows what the last one lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.evaluation.probing.online import RAW
from components.evaluation.probing.probes import mean_of


class Point(NamedTuple):
    """What the probes said after so many steps: mean kNN accuracy over the tasks, and mean IoU; both 0 ... 1."""

    step: int
    knn: float
    miou: float


def read_curve(source: str | Path) -> list[Point]:
    """The probes of an export's run; none where it has no ``curve.json``, or did not record both."""
    try:
        content: Any = json.loads((Path(source) / "curve.json").read_text())
        probes = content["probes"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    found = []
    for probe in probes if isinstance(probes, list) else []:
        own = {name: value for name, value in probe.items() if not name.endswith(RAW)}
        knn, miou = mean_of(own, "knn"), mean_of(own, "dense")
        if knn is not None and miou is not None:
            found.append(Point(int(probe["step"]), knn, miou))
    return found


def lost(points: Sequence[Point]) -> float:
    """The mean IoU of the last point below the best one, as a share of the best; 0 where the last is the best."""
    best = max(point.miou for point in points)
    return 1 - points[-1].miou / best if best > 0 else 0.0


def trade_off_table(curves: Mapping[str, Sequence[Point]]) -> str:
    """One row a model, in Markdown; nothing where none has both scores."""
    known = {model: points for model, points in curves.items() if points}
    if not known:
        return ""
    heads = ["model", "best kNN (step)", "best mIoU (step)", "last kNN", "last mIoU", "mIoU lost since its best"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for model, points in known.items():
        knn, dense = max(points, key=lambda point: point.knn), max(points, key=lambda point: point.miou)
        last = points[-1]
        cells = [f"{100 * knn.knn:.1f} ({knn.step:,})", f"{100 * dense.miou:.1f} ({dense.step:,})"]
        cells += [f"{100 * last.knn:.1f}", f"{100 * last.miou:.1f}", f"{lost(points):.1%}"]
        lines.append("| " + " | ".join([model, *cells]) + " |")
    return (
        "\n### dense quality over training\n\nThe probes of each run, in percent: kNN is the mean over its tasks, mIoU "
        "that of its dense probe. They are on the training side.\n\n" + "\n".join(lines) + "\n"
    )


def plain(curves: Mapping[str, Sequence[Point]]) -> dict[str, list[dict[str, float]]]:
    """As JSON."""
    return {model: [dict(point._asdict()) for point in points] for model, points in curves.items() if points}
