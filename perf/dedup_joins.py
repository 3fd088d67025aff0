"""Decisions and manifest of a synthetic pool, descriptors given: seconds, and peak memory after each step.

    VITRAIL_PERF_DEDUP=200000,2000000 python -m perf dedup_joins
    python -m perf.dedup_joins 20000000 FOLDER

The index (parts of 65,536 rows), the copy graph's edges (groups of four scattered over the pool, in half of it), leaks
and what was retrieved are made first and not counted. Then the stage's own steps run: the pool is counted and its rows
written, components, representatives by size, deciding edges, decisions, manifest, the threshold sweep, and the checks
in SQL. Each size runs in a process of its own; its memory is the largest resident set, libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.dedup import checks, resolve
from components.dedup.copy_graph.edges import EdgeParts, Edges, part_path, write_part
from components.dedup.copy_graph.graph import component_counts, components
from components.dedup.decisions import decide
from components.dedup.decisions.files import ColumnWriter, JoinFiles, fresh_folder
from components.dedup.outputs import groups_of
from components.dedup.pages.sweep import sweep
from components.dedup.params import DedupParams
from components.dedup.pool.images import Pool, ranges
from components.dedup.revisit import check_same_pool
from components.dedup.thresholds import Thresholds
from components.images.shards import Shards
from components.params import parse_params
from components.storage import StorageParams
from components.tables.database import database
from components.tables.parts import PartWriter
from components.tables.schemas import INDEX

ROOT = Path(__file__).resolve().parents[1]
BLOCK, AT = 65_536, 0.6


def main() -> dict[str, object]:
    """Figures of each size."""
    figures: dict[str, object] = {"target": "20 M rows under 2 GB"}
    for size in os.environ.get("VITRAIL_PERF_DEDUP", "200000").split(","):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            command = [sys.executable, "-m", "perf.dedup_joins", size, folder]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        figures[f"{int(size):,} rows"] = json.loads(done.stdout.splitlines()[-1])
    return figures


def make_index(folder: Path, kept: int) -> None:
    """An index of ``kept`` rows, all kept."""
    rng, done = np.random.default_rng(0), 0
    with PartWriter(folder / "index", INDEX) as writer:
        while done < kept:
            count = min(BLOCK, kept - done)
            numbers = np.arange(done, done + count)
            keys, digests = _hex(rng, count, 10), _hex(rng, count, 32)
            columns: dict[str, object] = {name: pa.array([""] * count) for name in INDEX.names}
            columns |= {name: pa.array(np.zeros(count, np.int64)) for name in ("faces", "nsfw", "source_offset")}
            columns |= {
                name: pa.nulls(count, INDEX.field(name).type) for name in ("decisions", "face_boxes", "face_scores")
            }
            columns |= {"key": keys, "sha256": digests, "stored_sha256": digests, "shard": pa.array(["0.tar"] * count)}
            columns |= {"offset": pa.array(numbers * 1000), "length": pa.array(np.full(count, 900))}
            columns |= {name: pa.array(rng.integers(64, 2000, count)) for name in ("width", "height")}
            columns |= {"url": pc.binary_join_element_wise("http://site.test/", keys, ".jpg", "")}
            columns |= {"status": pa.array(["kept"] * count)}
            writer.write(pa.table({name: columns[name] for name in INDEX.names}))
            done += count
    Shards("", {"0.tar": {"sha256": "", "bytes": 0}}).save(folder)


def _hex(rng: np.random.Generator, count: int, width: int) -> pa.Array:
    """Random strings of ``2 * width`` hex digits."""
    offsets = np.arange(0, 2 * width * count + 1, 2 * width, np.int32)
    letters = rng.bytes(width * count).hex().encode()
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(letters)])


def make_edges(folder: Path, rows: int, a_part: int = 1 << 20) -> EdgeParts:
    """Groups of four, scattered over the pool, in half of it; in parts of the groups of ``a_part`` rows."""
    folder.mkdir(parents=True)
    step = 7919  # prime to the number of rows: one to one
    paths = []
    for start in range(0, rows // 2, a_part):
        first = np.arange(start, min(start + a_part, rows // 2 - 3), 4)
        a = np.concatenate([first, first + 1, first + 2]) * step % rows
        b = np.concatenate([first + 1, first + 2, first + 3]) * step % rows
        similarity = np.random.default_rng(start).uniform(0.61, 1, len(a)).astype(np.float32)
        paths.append(write_part(part_path(folder, start, start + 1), Edges.of_wholes(a, b, similarity).canonical()))
    return EdgeParts(paths)


def made_before(files: JoinFiles, rows: int) -> None:
    """One row in fifty leaks; of the rows that survive those of even numbers were found."""
    with ColumnWriter(files.leaks, ("row", "reference", "similarity", "view", "match_view", "identical")) as writer:
        leaks = np.arange(0, rows, 50)
        same = np.zeros(len(leaks), bool)
        cosine = np.full(len(leaks), 0.9, np.float32)
        writer.write(
            row=leaks, reference=leaks % 1000, similarity=cosine, view=0 * leaks, match_view=0 * leaks, identical=same
        )
    with ColumnWriter(files.found, ("row", "times", "query", "similarity")) as writer:
        for start in range(0, rows, BLOCK):
            found = np.arange(start, min(start + BLOCK, rows), 2)
            cosine = np.full(len(found), 0.7, np.float32)
            writer.write(row=found, times=np.ones(len(found), np.int64), query=found % 1000, similarity=cosine)
    with ColumnWriter(files.brought, ("row", "name", "place")) as writer:
        for start in range(0, rows, BLOCK):
            found = np.arange(start, min(start + BLOCK, rows), 2)
            writer.write(row=found, name=np.full(len(found), "set"), place=0 * found)


def make(folder: Path, rows: int, a_part: int = 1 << 20) -> None:
    """What the walk begins with, where it is not there yet."""
    if not (folder / "curated/index").exists():
        make_index(folder / "curated", rows)
        make_edges(folder / "edges", rows, a_part)
    made_before(JoinFiles(fresh_folder(folder / "joins")), rows)


def walk(folder: Path, rows: int, memory: int) -> Iterator[str]:
    """Take the stage's steps over what :func:`make` made; gives the name of each when it is done."""
    content = {"descriptor": {"kind": "thumbnail"}, "graph": {"threshold": AT, "keep": "largest"}}
    content |= {"relative": {"threshold": AT}, "memory": {"megabytes": memory, "threads": 2}}
    params, at = parse_params(content, DedupParams, "perf"), Thresholds(AT, AT, 0.5)
    edges, files = EdgeParts.of(folder / "edges"), JoinFiles(folder / "joins")
    pool = Pool.load(folder / "curated", StorageParams(root=str(folder)))
    pool.write_rows(files.rows)
    ranges(pool, params.graph.part_rows)
    yield "rows"
    labels = components(rows, edges, AT)
    resolve.resolve_components(params, pool, labels, edges, at, files)
    yield "settled"
    selection = decide.Selection("retrieved", [f"q/{i}" for i in range(1000)], ["retrieved:q"] * 1000)
    held, out = [f"b/{i}" for i in range(1000)], fresh_folder(folder / "out")
    with database(params.memory, files.folder) as connection:
        checks.check_components(connection, files, component_counts(labels), params.graph, AT, folder / "gx")
        decide.decide(connection, files, held, selection)
        yield "decided"
        for table in (files.decisions, files.manifest):
            table.rename(out / table.name)
        checks.check_edges(edges, rows, 0.5, params.checks, folder / "gx")
        held_out = checks.HeldOutDescriptors(np.empty((0, 1, 4), np.float16), [], AT)
        given = params.checks, folder / "gx"
        checks.check_manifest(connection, out, pool, np.empty((0, 1, 4)), held_out, given)
        groups_of(connection, files.state, 12, 8)
    yield "checked"
    to_held_out = np.broadcast_to(np.float32(0.3), rows)
    sweep(edges, to_held_out, [AT, 0.8], labels, params.graph.giants, "relative")
    check_same_pool(pool, out)
    yield "swept"


def held(folder: Path, rows: int, memory: int) -> dict[str, int]:
    """The most bytes that Python, NumPy and Arrow held up to the end of each step: for a fresh process."""
    found: dict[str, int] = {}
    tracemalloc.start()
    for name in walk(folder, rows, memory):
        # Arrow knows the most of the process's whole life alone.
        found[name] = tracemalloc.get_traced_memory()[1] + (pa.default_memory_pool().max_memory() or 0)
        tracemalloc.reset_peak()
    return found


def run(rows: int, folder: Path, memory: int) -> None:
    """See the head of this file."""
    make(folder, rows)
    began = time.monotonic()
    took: dict[str, object] = {}
    for name in walk(folder, rows, memory):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        took[name] = {"seconds": round(time.monotonic() - began, 1), "peak_mb": round(peak)}
        print(name, took[name], flush=True)
    print(json.dumps(took))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", type=int, default=512, help="memory.megabytes of the joins")
    arguments = parser.parse_args()
    run(arguments.rows, arguments.folder, arguments.memory)
