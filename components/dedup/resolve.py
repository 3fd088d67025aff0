"""The pool's copy graph, and who of it survives: components, held-out matches, representatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.dedup import decide
from components.dedup.copygraph import GraphSearch, ranges, search_edges
from components.dedup.described import Described, HeldOutImages
from components.dedup.edges import EdgeParts
from components.dedup.extract import Pool
from components.dedup.giants import Cut, cut_giants
from components.dedup.graph import components
from components.dedup.keep import scores
from components.dedup.params import DedupParams
from components.dedup.reference import LeakMatches, identical_rows, leaking_components, match_parts, with_identical
from components.dedup.thresholds import Thresholds
from components.descriptors.rows import Rows
from components.storage import atomic_file


@dataclass(frozen=True)
class CopyGraph:
    """Everything that is known of copies in the pool."""

    resolved: decide.Resolved
    leaks: LeakMatches
    deciding: decide.DecidingEdges
    edges: EdgeParts
    cuts: list[Cut]  # of giant components


def copy_graph(
    params: DedupParams, pool: Pool, described: Described, held_out: HeldOutImages, at: Thresholds, work: Path
) -> CopyGraph:
    """Search the pool's edges and leaks, and settle which image of each component is kept."""
    graph, count = params.graph, len(pool)
    parts = ranges(pool.rows["shard"].to_pylist(), graph.part_rows)
    search = GraphSearch(graph.k, at.floor, params.neighbours)
    edges = search_edges(described.rows, described.folder.name, search, parts, described.folder, params.executor)
    labels, cuts = _labels(params, count, edges, at, work)
    leaks = _leaks(params, described.rows, parts, held_out, at.relative, work / "held-out.npy")
    leaks = with_identical(leaks, identical_rows(pool.rows, held_out.digests))
    tied: NDArray[np.integer[Any]] = labels
    if params.relative.within == "relative":
        on_disk = count >= graph.labels_on_disk_from
        tied = components(count, edges, at.relative, work / "relative.bin" if on_disk else None)
    merits = scores(graph.keep, pool, labels, params.executor, params.chunk)
    digests = np.array(pool.rows["stored_sha256"].to_pylist())
    resolved = decide.resolve(labels, leaking_components(tied, leaks.leaks), merits, digests)
    at_tied = at.relative if params.relative.within == "relative" else at.within
    deciding = decide.deciding_edges(resolved, tied, edges, at.within, at_tied)
    return CopyGraph(resolved, leaks, deciding, edges, cuts)


def _labels(
    params: DedupParams, count: int, edges: EdgeParts, at: Thresholds, work: Path
) -> tuple[NDArray[np.integer[Any]], list[Cut]]:
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


def _leaks(
    params: DedupParams,
    rows: Rows,
    parts: Sequence[tuple[int, int]],
    held_out: HeldOutImages,
    threshold: float,
    path: Path,
) -> LeakMatches:
    """The pool's matches with held-out images, whose descriptors go to ``path`` for workers to map."""
    if not len(held_out.rows):
        return LeakMatches.none(len(rows.open()))
    with atomic_file(path) as file:  # always anew: a benchmark's pictures may change under their keys
        np.save(file, held_out.rows, allow_pickle=False)
    return match_parts(rows, parts, Rows(path), threshold, params.neighbours, params.executor)
