"""The pool's copy graph, and who of it survives: components, held-out matches, representatives.

Three arrays of 4 bytes a row are held (8 from 2^32 rows): the component of each row, by which row with a leak it goes,
and the row that is kept of each component. All else is in files, and joined there (joins.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.dedup import keep
from components.dedup.copy_graph.containment import small_windows, split
from components.dedup.copy_graph.edges import EdgeParts
from components.dedup.copy_graph.giants import Cut, cut_giants
from components.dedup.copy_graph.graph import STRIDE, component_counts, components
from components.dedup.copy_graph.search import GraphSearch, search_edges
from components.dedup.decisions.files import ColumnWriter, JoinFiles, batches
from components.dedup.decisions.reference import HeldOutImages, LeakSearch, find_leaks
from components.dedup.described import Described
from components.dedup.params import DedupParams
from components.dedup.pool.images import Pool, ranges
from components.dedup.thresholds import Thresholds
from components.tables.database import database

ComponentLabels = NDArray[np.integer[Any]]
TIES = ("row", "other", "similarity", "view", "match_view", "straight")


@dataclass(frozen=True)
class CopyGraph:
    """What is known of copies in the pool, beside the files."""

    labels: ComponentLabels  # [N] component: its smallest row
    edges: EdgeParts
    cuts: list[Cut]  # of giant components


def copy_graph(
    params: DedupParams, pool: Pool, described: Described, held_out: HeldOutImages, at: Thresholds, files: JoinFiles
) -> CopyGraph:
    """Search the pool's edges and leaks, and settle which image of each component is kept: ``files.state``."""
    graph, count = params.graph, len(pool)
    parts = ranges(pool, graph.part_rows)
    search = GraphSearch(graph.k, at.floor, params.neighbours)
    edges = search_edges(described.rows, described.folder.name, search, parts, described.folder, params.executor)
    labels, cuts = _labels(params, count, edges, at, files.folder)
    how = LeakSearch(at.relative, params.neighbours, params.executor)
    find_leaks(pool, described.rows, parts, held_out, how, files)
    return CopyGraph(resolve_components(params, pool, labels, edges, at, files), edges, cuts)


def resolve_components(
    params: DedupParams, pool: Pool, labels: ComponentLabels, edges: EdgeParts, at: Thresholds, files: JoinFiles
) -> ComponentLabels:
    """Write ``files.state`` and ``files.deciding`` from the components ``labels`` [N], the leaks and the edges.

    Returns:
        The components in force: ``labels``, but those split that only a collage holds together (containment.py). A
        leak goes for all of a component as it was before.
    """
    relative = params.relative.within == "relative"
    tied: ComponentLabels = labels
    if relative:
        on_disk = len(pool) >= params.graph.labels_on_disk_from
        tied = components(len(pool), edges, at.relative, files.folder / "relative.bin" if on_disk else None)
    kept = _kept(params, pool, labels, files)
    small = small_windows(params.described_views())
    while len(small) and (parts := split(labels, kept, edges, at.within, small)) is not None:
        labels, kept = parts, _kept(params, pool, parts, files)
    leak = spread_leaks(labels, tied, files.leaks)
    with ColumnWriter(files.state) as writer:
        for start in range(0, len(labels), STRIDE):
            rows = np.arange(start, min(start + STRIDE, len(labels)))
            own = labels[rows]
            writer.write(row=rows, component=own, kept=kept[own], leak=signed(leak[rows]))
    with ColumnWriter(files.ties, TIES) as writer:
        for block in ties(labels, tied, leak, kept, edges, (at.within, at.relative if relative else at.within)):
            writer.write(**block)
    with database(params.memory, files.folder) as connection:
        files.best_ties(connection)
    return labels


def none(array: ComponentLabels) -> int:
    """The number that stands for no row in an array of rows like this one."""
    return int(np.iinfo(array.dtype).max)


def signed(rows: ComponentLabels) -> NDArray[np.int64]:
    """``rows`` with -1 for none."""
    return np.where(rows == none(rows), -1, rows.astype(np.int64))


def spread_leaks(labels: ComponentLabels, tied: ComponentLabels, leaks: Path) -> ComponentLabels:
    """For every row [N] the row whose leak it goes for; :func:`none` where it goes for none.

    A leak goes for all rows of its component of ``tied`` [N], by the first of that component's leaks; and a row of them
    takes its whole component of ``labels`` [N] with it.
    """
    first = np.full(len(labels), none(labels), labels.dtype)
    for batch in batches(leaks, ["row"]):
        rows = batch["row"].astype(labels.dtype)
        np.minimum.at(first, tied[rows], rows)
    leak = np.empty_like(first)
    for start in range(0, len(labels), STRIDE):
        leak[start : start + STRIDE] = first[tied[start : start + STRIDE]]
    if tied is labels:
        return leak
    first[:] = none(labels)
    for start in range(0, len(labels), STRIDE):
        part = leak[start : start + STRIDE]
        goes = part != none(labels)
        np.minimum.at(first, labels[start : start + STRIDE][goes], part[goes])
    for start in range(0, len(labels), STRIDE):
        part = leak[start : start + STRIDE]
        stays = part == none(labels)
        part[stays] = first[labels[start : start + STRIDE][stays]]
    return leak


def ties(
    labels: ComponentLabels,
    tied: ComponentLabels,
    leak: ComponentLabels,
    kept: ComponentLabels,
    edges: EdgeParts,
    over: tuple[float, float],
) -> Iterator[dict[str, NDArray[Any]]]:
    """Blocks of the edges' ends that tie a row that goes, with the columns of ``files.ties``.

    Straight is an edge to the very row that it goes for: the kept one, or the one that leaks. Components of ``labels``
    are tied over the first cosine of ``over``, those of ``tied`` over the second.
    """
    for block in edges:
        for own, other, view, other_view in (
            (block.a, block.b, block.a_view, block.b_view),
            (block.b, block.a, block.b_view, block.a_view),
        ):
            leaks = leak[own] != none(leak)
            target = np.where(leaks, leak[own], kept[labels[own]])
            within = (labels[own] == labels[other]) & (block.similarity > over[0])
            within |= leaks & (tied[own] == tied[other]) & (block.similarity > over[1])
            use = np.flatnonzero(within & (target != own))
            yield {
                "row": own[use],
                "other": other[use],
                "similarity": block.similarity[use],
                "view": view[use],
                "match_view": other_view[use],
                "straight": target[use] == other[use],
            }


def _kept(params: DedupParams, pool: Pool, labels: ComponentLabels, files: JoinFiles) -> ComponentLabels:
    """The kept row of every component, at the number of its smallest row [N]."""
    counts = component_counts(labels)
    with ColumnWriter(files.members, ("row", "component")) as writer:
        for start in range(0, len(labels), STRIDE):
            own = labels[start : start + STRIDE]
            rows = np.flatnonzero(counts[own] > 1)
            writer.write(row=start + rows, component=own[rows])
    del counts
    keep.measure(params, pool, files)
    kept: ComponentLabels = np.arange(len(labels), dtype=labels.dtype)
    with database(params.memory, files.folder) as connection:
        for component, row in keep.best(params.graph.keep, connection, files):
            kept[component] = row
    return kept


def _labels(
    params: DedupParams, count: int, edges: EdgeParts, at: Thresholds, work: Path
) -> tuple[ComponentLabels, list[Cut]]:
    """The component of every row, giants cut."""
    graph = params.graph
    on_disk = count >= graph.labels_on_disk_from
    labels = components(count, edges, at.within, work / "components.bin" if on_disk else None)
    if graph.giants is None:
        return labels, []
    labels, cuts = cut_giants(labels, edges, at.within, graph.giants)
    for cut in cuts:
        print(
            f"dedup: a component of {cut.size:,} images cut into {cut.parts:,} at cosines up to {cut.threshold:g}; "
            f"the largest part holds {cut.largest:,}",
            flush=True,
        )
    return labels, cuts
