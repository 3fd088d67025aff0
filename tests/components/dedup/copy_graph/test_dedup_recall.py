from __future__ import annotations

from pathlib import Path

import numpy as np

from components.dedup.copy_graph.edges import EdgeParts, Edges, write_part
from components.dedup.copy_graph.recall import EdgeRecall, measure_recall
from components.dedup.copy_graph.search import GraphSearch, search_edges
from components.descriptors.rows import DescriptorRows
from components.executor import ExecutorParams
from components.neighbours import NeighbourParams


def descriptors(path: Path, count: int = 3000) -> DescriptorRows:
    """[count, 2, 16]: the last tenth copy the first at cosine 0.9 and more."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, 2, 16))
    copies = count // 10
    rows[-copies:] = rows[:copies] + 0.4 * rng.normal(size=(copies, 2, 16))
    np.save(path, (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float16))
    return DescriptorRows(path)


def test_recall_is_the_share_of_exact_edges_that_the_graph_holds(tmp_path: Path) -> None:
    rows = descriptors(tmp_path / "rows.npy")
    params = NeighbourParams(factory="IVF32,PQ4x4", nprobe=2, candidates=2, recall_sample=500)
    images = rows.open().astype(np.float32)
    cosine = np.einsum("nd,mrd->nmr", images[:, 0], images).max(2)  # whole images with images and their windows
    np.fill_diagonal(cosine, -1)
    search, parts = GraphSearch(8, 0.5, params), [(0, 1500), (1500, 3000)]
    edges = search_edges(rows, "d", search, parts, tmp_path / "w", ExecutorParams(workers=0))
    found = measure_recall(rows, edges, 8, 0.9, params)
    chosen = np.sort(np.random.default_rng(0).permutation(3000)[:500])
    exact = {(min(a, b), max(a, b)) for a in chosen for b in np.flatnonzero(cosine[a] > 0.9)}
    held = {(int(a), int(b)) for block in edges for a, b, s, *_ in zip(*block, strict=True) if s > 0.9}
    assert found == EdgeRecall(500, len(exact), len(exact & held))
    assert 0 < found.found < found.edges  # two of 32 lists miss some
    assert found.report()["edge_recall"] == round(found.found / found.edges, 4)
    # A graph that holds every edge, and one that holds none.
    a, b = np.array(sorted(exact)).T
    whole = write_part(tmp_path / "whole.parquet", Edges.of_wholes(a, b, np.ones(len(a), np.float32)))
    assert measure_recall(rows, EdgeParts([whole]), 8, 0.9, params) == EdgeRecall(500, len(exact), len(exact))
    assert measure_recall(rows, EdgeParts([]), 8, 0.9, params) == EdgeRecall(500, len(exact), 0)


def test_an_exact_search_has_nothing_to_measure(tmp_path: Path) -> None:
    rows = descriptors(tmp_path / "rows.npy", 100)
    assert measure_recall(rows, EdgeParts([]), 8, 0.9, NeighbourParams()) == EdgeRecall(0, 0, 0)
    none = NeighbourParams(factory="IVF4,PQ4x4", recall_sample=0)
    assert "edge_recall" not in measure_recall(rows, EdgeParts([]), 8, 0.9, none).report()
