"""The pool's edges on disk: the index in pieces, then the search in parts, each over the executor, each resumable.

Small pools are searched exactly, without files. Above ``neighbours.flat_up_to`` descriptors an index is trained, built
in pieces of whole input shards, merged, checked by hash and opened; see components/neighbours/files.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from components.dedup.copy_graph.edges import EDGES, EdgeParts, part_path, write_part
from components.dedup.copy_graph.graph import edges_of
from components.dedup.pool.scratch import scratch_folder
from components.descriptors.rows import DescriptorRows
from components.executor import ExecutorParams, map_shards
from components.neighbours import IndexFolder, NeighbourParams, Neighbours, factory_for, lists_of
from components.params import fingerprint
from components.progress import track


class GraphSearch(NamedTuple):
    """Which edges are searched, and how."""

    k: int  # neighbours an image
    floor: float  # cosine that an edge must be over
    neighbours: NeighbourParams


def search_edges(
    rows: DescriptorRows,
    digest: str,
    search: GraphSearch,
    parts: Sequence[tuple[int, int]],
    work: Path,
    executor: ExecutorParams,
) -> EdgeParts:
    """Every edge of the descriptors ``rows`` that ``search`` asks for, in part files below ``work``.

    What is there is kept. ``digest`` names the descriptors, and must be part of ``work``'s own name where descriptors
    can change. Edges searched in another way are not taken, and removed.
    """
    params = search.neighbours
    flat = rows.flat()
    each = len(flat) // len(rows.open())
    folder = work / "index"
    in_pieces = lists_of(factory_for(len(flat), flat.shape[1], params, gpu=False)) > 0
    how = params.model_dump(mode="json", exclude={"block", "lists"})
    version = EDGES.metadata[b"vitrail.version"].decode()
    edges = scratch_folder(work, "edges", fingerprint([search.k, search.floor, version], how))
    paths = [part_path(edges, *part) for part in parts]
    left = [part for part, path in zip(parts, paths, strict=True) if not path.exists()]
    if left and in_pieces:
        IndexFolder(folder).train(flat, digest, params)
        pieces = [(start * each, stop * each) for start, stop in parts]
        build = partial(_piece, rows, folder, params)
        for _ in track(map_shards(build, pieces, executor), "copy index", len(pieces), unit="pieces"):
            pass
        IndexFolder(folder).merge(pieces)
        IndexFolder(folder).verify()
    find = partial(_part, rows, folder if in_pieces else None, search, edges)
    for _ in track(map_shards(find, left, executor), "copy graph", len(left), unit="parts"):
        pass
    _opened.cache_clear()
    return EdgeParts(paths)


def _piece(rows: DescriptorRows, folder: Path, params: NeighbourParams, piece: tuple[int, int]) -> Path:
    index = IndexFolder(folder)
    if (folder / "merged/merged.json").exists():
        return folder
    return index.build_piece(rows.flat(), *piece, params)


def _part(rows: DescriptorRows, folder: Path | None, search: GraphSearch, out: Path, part: tuple[int, int]) -> Path:
    index = _opened(rows, folder, search.neighbours)
    return write_part(part_path(out, *part), edges_of(rows.open(), *part, search.k, search.floor, index))


@lru_cache(maxsize=1)
def _opened(rows: DescriptorRows, folder: Path | None, params: NeighbourParams) -> Neighbours:
    """The index, once a process; the parent process has hashed its files."""
    if folder is None:
        return Neighbours(rows.flat(), params)
    return IndexFolder(folder).open(rows.flat(), params, verified=True)
