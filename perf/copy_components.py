"""Connected components of 100 M edges, streamed from part files on disk: seconds and this process's memory.

    python -m perf copy_components

Two graphs of 100 M edges over 50 M rows: "copies", groups of twenty scattered over the pool, as a copy graph is; and
"random", any row with any other, whose giant component is the worst a union-find meets. The edges are written as the
dedup stage writes them, and reading them is part of the time. SciPy's connected_components, which needs the whole graph
in memory, is run on a tenth for comparison, and must find as many components.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from components.dedup.copy_graph.edges import EdgeParts, Edges, part_path, write_part
from components.dedup.copy_graph.graph import components

ROWS, EDGES, PART = 50_000_000, 100_000_000, 5_000_000


def main() -> dict[str, object]:
    """Seconds, memory and, on a tenth, the ratio to SciPy."""
    figures: dict[str, object] = {"size": f"{EDGES:,} edges over {ROWS:,} rows"}
    for kind in ("copies", "random"):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            parts = _write(Path(folder), kind, EDGES, ROWS)
            began = time.perf_counter()
            labels = components(ROWS, parts, 0.6)
            seconds = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            found = int((labels == np.arange(ROWS)).sum())
            del labels
            figures[kind] = {"seconds": round(seconds, 1), "components": found, "peak_gigabytes": round(peak, 2)}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        figures["a tenth, random"] = _beside_scipy(_write(Path(folder), "random", EDGES // 10, ROWS // 10))
    return figures


def _write(folder: Path, kind: str, edges: int, rows: int) -> EdgeParts:
    generator = np.random.default_rng(0)
    paths = []
    for start in range(0, edges, PART):
        if kind == "copies":
            a = generator.integers(0, rows, PART)
            b = a // 20 * 20 + generator.integers(0, 20, PART)
            a, b = (a * 7919) % rows, (b * 7919) % rows  # one to one, for 7919 is prime to the number of rows
        else:
            a, b = generator.integers(0, rows, (2, PART))
        similarity = np.full(PART, 0.7, np.float32)
        paths.append(write_part(part_path(folder, start, start + PART), Edges.of_wholes(a, b, similarity)))
    return EdgeParts(paths)


def _beside_scipy(parts: EdgeParts) -> dict[str, object]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = ROWS // 10
    began = time.perf_counter()
    labels = components(rows, parts, 0.6)
    ours = time.perf_counter() - began
    blocks = [*parts]
    a, b = np.concatenate([block.a for block in blocks]), np.concatenate([block.b for block in blocks])
    began = time.perf_counter()
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(rows, rows))
    count, _ = connected_components(graph, directed=False)
    theirs = time.perf_counter() - began
    if count != int((labels == np.arange(rows)).sum()):
        raise AssertionError("SciPy finds another number of components")
    return {"seconds": round(ours, 1), "scipy_seconds": round(theirs, 1), "ratio": round(ours / theirs, 2)}
