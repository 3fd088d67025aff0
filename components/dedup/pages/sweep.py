"""What each threshold would drop: a table to choose from, made from edges and similarities already computed."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.dedup.copy_graph.edges import Edges
from components.dedup.copy_graph.giants import GiantParams, cut_giants
from components.dedup.copy_graph.graph import STRIDE, component_counts, components
from components.storage import atomic_file


class SweepPoint(NamedTuple):
    """One threshold, applied to self-dedup and, beside it, to the held-out images."""

    threshold: float  # cosine
    duplicates: int  # images that self-dedup would drop: all but one of each component, giants cut as in a run
    groups: int  # components of two images and more
    largest: int  # images in the largest component
    held_out: int  # images over this cosine to a held-out image
    dropped_with_them: int  # those and the rest of their components, tied at the self threshold in force


def sweep(
    edges: Iterable[Edges],
    to_held_out: NDArray[np.floating],
    thresholds: Sequence[float],
    labels: NDArray[np.integer[Any]],
    giants: GiantParams | None = None,
    within: Literal["self", "relative"] = "self",
) -> list[SweepPoint]:
    """One outcome a threshold, by the same rules as a run: at the thresholds in force its numbers are the run's.

    Args:
        edges: read once for each threshold, and again while giants are cut; those below the floor they were searched
            with are not there.
        to_held_out: [count] cosine of each image to its nearest held-out image, fp32.
        thresholds: cosines.
        labels: [count] the components in force, which relative dedup drops whole.
        giants: ``graph.giants``.
        within: ``relative.within``.
    """
    found, count = [], len(labels)
    for threshold in sorted(thresholds):
        tied = components(count, edges, threshold)
        cut = tied if giants is None else cut_giants(tied, edges, threshold, giants)[0]
        counts = component_counts(cut)
        del cut
        leaks, dropped = _dropped(labels, labels if within == "self" else tied, to_held_out, threshold)
        found.append(
            SweepPoint(
                float(threshold),
                int(count - np.count_nonzero(counts)),
                int(np.count_nonzero(counts > 1)),
                int(counts.max(initial=0)),
                leaks,
                dropped,
            )
        )
    return found


def _dropped(
    labels: NDArray[np.integer[Any]],
    tied: NDArray[np.integer[Any]],
    to_held_out: NDArray[np.floating],
    threshold: float,
) -> tuple[int, int]:
    """How many rows leak at ``threshold``, and go with them: of their components of ``tied``, then ``labels``."""
    spans = [slice(start, start + STRIDE) for start in range(0, len(labels), STRIDE)]
    leaking, going = np.zeros(len(labels), bool), np.zeros(len(labels), bool)  # by component
    leaks = 0
    for span in spans:
        over = np.asarray(to_held_out[span], np.float32) > threshold
        leaks += int(over.sum())
        leaking[tied[span][over]] = True
    for span in spans:
        going[labels[span][leaking[tied[span]]]] = True
    return leaks, sum(int(np.count_nonzero(leaking[tied[span]] | going[labels[span]])) for span in spans)


def table(outcomes: Sequence[SweepPoint]) -> str:
    """The outcomes in columns, to read."""
    lines = ["threshold  duplicates   groups  largest  | held-out  dropped with them"]
    for one in outcomes:
        lines.append(
            f"{one.threshold:9.4f}  {one.duplicates:10,}  {one.groups:7,}  {one.largest:7,}  | {one.held_out:8,}  "
            f"{one.dropped_with_them:17,}"
        )
    return "\n".join(lines)


def write_csv(outcomes: Sequence[SweepPoint], path: Path) -> None:
    """The outcomes as comma-separated values."""
    with atomic_file(path, "w") as file:
        writer = csv.writer(file)
        writer.writerow(SweepPoint._fields)
        writer.writerows(outcomes)
