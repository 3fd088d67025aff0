"""Decisions and manifest of a synthetic pool, descriptors given: seconds, rows a second, peak memory.

    python -m perf.dedup_joins 20000000 FOLDER

The index (parts of 65,536 rows), the copy graph's edges (groups of four scattered over the pool, in
half of it) and what was retrieved are made first and not counted. Then the stage's own steps run: the pool is counted
and its rows written, components, leaks, representatives by size, deciding edges, decisions, manifest, and the checks
in SQL. ``--limit-megabytes``: as many of address space beyond what the imports take, and no checks; more ends the run.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from components.dedup import checks, decide, resolve
from components.dedup.edges import EdgeParts, Edges, part_path, write_part
from components.dedup.files import JoinFiles, RowWriter, fresh_folder
from components.dedup.graph import components
from components.dedup.params import DedupParams
from components.dedup.pool import Pool
from components.dedup.thresholds import Thresholds
from components.images.shards import Shards
from components.params import parse_params
from components.storage import StorageParams
from components.tables.database import database
from components.tables.parts import PartWriter
from components.tables.schemas import INDEX

BLOCK, AT = 65_536, 0.6


def main() -> dict[str, object]:
    """Nothing is measured without arguments: 20 M rows take long."""
    return {"left out": "run python -m perf.dedup_joins 20000000 FOLDER"}


def make_index(folder: Path, kept: int) -> None:
    """An index of ``kept`` rows, all kept."""
    rng, done = np.random.default_rng(0), 0
    with PartWriter(folder / "index", INDEX) as writer:
        while done < kept:
            count = min(BLOCK, kept - done)
            numbers = np.arange(done, done + count)
            keys = pa.array([f"{number * 2654435761 % 2**64:020x}" for number in numbers.tolist()])
            digests = pa.array([key * 3 + "0000" for key in keys.to_pylist()])
            columns: dict[str, object] = {name: pa.array([""] * count) for name in INDEX.names}
            columns |= {name: pa.array(np.zeros(count, np.int64)) for name in ("faces", "nsfw", "source_offset")}
            columns |= {
                name: pa.nulls(count, INDEX.field(name).type) for name in ("decisions", "face_boxes", "face_scores")
            }
            columns |= {"key": keys, "sha256": digests, "stored_sha256": digests, "shard": pa.array(["0.tar"] * count)}
            columns |= {"offset": pa.array(numbers * 1000), "length": pa.array(np.full(count, 900))}
            columns |= {name: pa.array(rng.integers(64, 2000, count)) for name in ("width", "height")}
            columns |= {"url": pa.array([f"http://site.test/{key}.jpg" for key in keys.to_pylist()])}
            columns |= {"status": pa.array(["kept"] * count)}
            writer.write(pa.table({name: columns[name] for name in INDEX.names}))
            done += count
    Shards("", {"0.tar": {"sha256": "", "bytes": 0}}).save(folder)


def make_edges(folder: Path, rows: int) -> EdgeParts:
    """Groups of four, scattered over the pool, in half of it; in parts of a million edges."""
    folder.mkdir(parents=True)
    step = 7919  # prime to the number of rows: one to one
    paths = []
    for start in range(0, rows // 2, 4 * 262_144):
        first = np.arange(start, min(start + 4 * 262_144, rows // 2 - 3), 4)
        a = np.concatenate([first, first + 1, first + 2]) * step % rows
        b = np.concatenate([first + 1, first + 2, first + 3]) * step % rows
        similarity = np.random.default_rng(start).uniform(0.61, 1, len(a)).astype(np.float32)
        paths.append(write_part(part_path(folder, start, start + 1), Edges.of_wholes(a, b, similarity).canonical()))
    return EdgeParts(paths)


def made_before(files: JoinFiles, rows: int) -> None:
    """One row in fifty leaks; of the rows that survive those of even numbers were found."""
    with RowWriter(files.leaks, ("row", "reference", "similarity", "view", "match_view", "identical")) as writer:
        leaks = np.arange(0, rows, 50)
        same = np.zeros(len(leaks), bool)
        cosine = np.full(len(leaks), 0.9, np.float32)
        writer.write(
            row=leaks, reference=leaks % 1000, similarity=cosine, view=0 * leaks, match_view=0 * leaks, identical=same
        )
    with RowWriter(files.found, ("row", "times", "query", "similarity")) as writer:
        for start in range(0, rows, BLOCK):
            found = np.arange(start, min(start + BLOCK, rows), 2)
            cosine = np.full(len(found), 0.7, np.float32)
            writer.write(row=found, times=np.ones(len(found), np.int64), query=found % 1000, similarity=cosine)
    with RowWriter(files.brought, ("row", "name")) as writer:
        for start in range(0, rows, BLOCK):
            found = np.arange(start, min(start + BLOCK, rows), 2)
            writer.write(row=found, name=np.full(len(found), "set"))


def run(rows: int, folder: Path, megabytes: int | None, memory: int) -> None:
    """See the head of this file."""
    curated = folder / "curated"
    if not (curated / "index").exists():
        make_index(curated, rows)
        make_edges(folder / "edges", rows)
    edges, files = EdgeParts.of(folder / "edges"), JoinFiles(fresh_folder(folder / "joins"))
    content = {"descriptor": {"kind": "thumbnail"}, "graph": {"threshold": AT, "keep": "largest"}}
    content |= {"relative": {"threshold": AT}, "memory": {"megabytes": memory, "threads": 2}}
    params = parse_params(content, DedupParams, "perf")
    made_before(files, rows)
    if megabytes is not None:
        with database(params.memory, files.folder) as connection:  # what it loads and starts is not counted
            connection.execute("SELECT 1").fetchall()
        limit = _virtual() + megabytes * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    began = time.monotonic()

    def step(name: str, work: Callable[[], object]) -> object:
        start = time.monotonic()
        found = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name}: {time.monotonic() - start:.1f} s, peak {peak:,.0f} MB so far", flush=True)
        return found

    pool = Pool.load(curated, StorageParams(root=str(folder)))
    step("rows", lambda: pool.write_rows(files.rows))
    at = Thresholds(AT, AT, 0.5)
    step("settled", lambda: resolve.settle(params, pool, components(rows, edges, AT), edges, at, files))
    selection = decide.Selection("retrieved", [f"q/{i}" for i in range(1000)], ["retrieved:q"] * 1000)
    out = fresh_folder(folder / "out")
    with database(params.memory, folder / "joins") as connection:
        step("decided", lambda: decide.decide(connection, files, [f"b/{i}" for i in range(1000)], selection))
        step("decisions", lambda: decide.write_decisions(connection, files, out / "decisions"))
        step("manifest", lambda: decide.write_manifest(connection, files, out / "manifest"))
        if megabytes is None:
            held_out = checks.HeldOut(np.empty((0, 1, 4), np.float16), [], AT)
            given = checks.CheckParams(), folder / "gx"
            step("checks", lambda: checks.check_manifest(connection, out, pool, np.empty((0, 1, 4)), held_out, given))
        print(decide.count_reasons(connection, files))
    print(f"{rows:,} rows decided in {time.monotonic() - began:.0f} s", flush=True)


def _virtual() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit-megabytes", type=int)
    parser.add_argument("--memory", type=int, default=512, help="memory.megabytes of the joins")
    arguments = parser.parse_args()
    sys.exit(run(arguments.rows, arguments.folder, arguments.limit_megabytes, arguments.memory))
