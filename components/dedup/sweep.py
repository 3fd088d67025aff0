"""What each threshold would drop: a table to choose from, made from edges and similarities already computed."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.dedup.edges import Edges
from components.dedup.graph import component_sizes, components
from components.dedup.reference import dropped_components
from components.storage import atomic_file


class Outcome(NamedTuple):
    """One threshold, applied to self-dedup and, beside it, to the held-out images."""

    threshold: float  # cosine
    duplicates: int  # images that self-dedup would drop
    groups: int  # components of two images and more
    largest: int  # images in the largest component
    held_out: int  # images over this cosine to a held-out image
    dropped_with_them: int  # those and the rest of their components, tied at the self threshold in force


def sweep(
    count: int,
    edges: Iterable[Edges],
    to_held_out: NDArray[np.floating],
    thresholds: Sequence[float],
    labels: NDArray[np.int64],
) -> list[Outcome]:
    """One outcome a threshold.

    Args:
        count: images of the pool.
        edges: read once for each threshold; those below the floor they were searched with are not there.
        to_held_out: [count] cosine of each image to its nearest held-out image.
        thresholds: cosines.
        labels: [count] the components in force, which relative dedup drops whole.
    """
    found = []
    for threshold in sorted(thresholds):
        sizes = component_sizes(components(count, edges, threshold))
        touched = np.asarray(to_held_out, np.float32) > threshold
        found.append(
            Outcome(
                round(float(threshold), 4),
                int(count - len(sizes)),
                int((sizes > 1).sum()),
                int(sizes[0]) if len(sizes) else 0,
                int(touched.sum()),
                int((dropped_components(labels, touched) >= 0).sum()),
            )
        )
    return found


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in columns, to read."""
    lines = ["threshold  duplicates   groups  largest  | held-out  dropped with them"]
    for one in outcomes:
        lines.append(
            f"{one.threshold:9.3f}  {one.duplicates:10,}  {one.groups:7,}  {one.largest:7,}  | {one.held_out:8,}  "
            f"{one.dropped_with_them:17,}"
        )
    return "\n".join(lines)


def write_csv(outcomes: Sequence[Outcome], path: Path) -> None:
    """The outcomes as comma-separated values."""
    with atomic_file(path, "w") as file:
        writer = csv.writer(file)
        writer.writerow(Outcome._fields)
        writer.writerows(outcomes)
