"""A pool of many rows is curated in little memory: whatever keeps a Python object a row does not fit.

A child process may take a fixed amount of private memory beyond what it has after it curated a small pool (so that all
is imported and every buffer has been used once). Then it curates a pool of many times the rows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import contextlib, resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq

from components import tracking
from components.context import StageContext
from components.curate import passes
from components.curate.duplicates import facts, hashing, near
from components.curate.links import addresses, gather, judge
from components.curate.results import sheet
from components.curate.pixels.examine import EXAMINED, STORED
from components.curate.params import CurateParams
from components.params import load_params
from components.storage import open_store
from components.tables import parts

PART, GROUP = 4096, 1024
for module in (parts, gather, judge, passes):
    for name, rows in (("PART_ROWS", PART), ("GROUP_ROWS", GROUP)):
        if hasattr(module, name):
            setattr(module, name, rows)
near.PARTITION = PART


def examined(item):
    # What decoding would have found: a seventh of the images are copies, by their bytes or nearly so.
    rows = np.asarray([place.row for place in item.places])
    which = rows - np.where(rows % 7 == 3, 3, 0)
    noise = [np.random.default_rng(one // 2).integers(0, 255, 1024, np.uint8).tobytes() for one in which.tolist()]
    table = pa.table({
        "row": rows, "key": [place.key for place in item.places], "reason": [""] * len(rows),
        "sha256": [f"{one:064x}" for one in which.tolist()], "bytes": [1000] * len(rows),
        "format": ["jpeg"] * len(rows),
        "width": [100] * len(rows), "height": [100] * len(rows), "thumbnail": noise,
    })
    pq.write_table(table.cast(EXAMINED), item.out)
    KEEP
    return item.out


def stored(item):
    places = list(item.chunk.places)
    blank = {"reason": "", "nsfw": float("nan"), "faces": 0, "face_boxes": [], "face_scores": [], "shard": "a.tar"}
    rows = [blank | {"row": place.row, "key": place.key, "offset": 512 * place.row, "length": 100,
                     "stored_sha256": f"{place.row:064x}"} for place in places]
    pq.write_table(pa.Table.from_pylist(rows, schema=STORED), item.chunk.out)
    item.chunk.out.with_suffix(".json").write_text("{}")
    return item.chunk.out


def walk(rows, work):
    work.mkdir()
    params = load_params("params/curate.yaml", CurateParams, [
        "executor.workers=0", "chunk=1024", "memory.megabytes=96", "memory.threads=1", "pca_hash.fit_images=2000",
        "nsfw.enabled=false", "faces.enabled=false", "policy.restricted=[]", "policy.forgotten=[]"])
    with parts.PartWriter(work / "kind", addresses.ADDRESSES) as writer:
        for start in range(0, rows, PART):
            numbers = np.arange(start, min(start + PART, rows))
            columns = {"row": numbers, "url": [f"file:deep/folder/of/images/{one:09d}.jpg" for one in numbers],
                       "kind": ["images"] * len(numbers), "source": ["root"] * len(numbers),
                       "file": [f"{one:09d}.jpg".encode() for one in numbers], "length": np.zeros(len(numbers), int)}
            writer.write(addresses.addresses(columns, len(numbers)))
    shared = passes.PassContext(params, open_store(str(work)), work, open_store(str(work / "shards")))
    from components.tables.database import database
    how = addresses.Gathering(
        shared.store, work, work, params.policy, 1, params.sandbox, params.memory, params.executor)
    with database(params.memory, work) as connection:
        met = gather._joined(connection, [addresses.Met(sorted((work / "kind").iterdir()))], how)
    judged = [judge.judge(item) for item in judge.items(met, params.policy, work, params.chunk)]
    passes.examine, passes.store_chunk = examined, stored
    found = passes.decode(shared, judged)
    known = passes.facts(shared, judged, found)
    exact, count = passes.exact(shared, known)
    hashing_, hashed = passes.hashes(shared, known, exact, found)
    nearly = passes.near_copies(shared, hashed)
    files, _ = passes.store(shared, judged, known, (exact, nearly))
    tallies = passes.index(shared, passes.PassFiles(judged, known, exact, nearly, hashed, files))
    assert sum(tally.rows for tally in tallies) == rows
    assert count == (rows - 4) // 7 + 1
    assert sum(tally.reasons["near-duplicate"] for tally in tallies) > rows // 4


small, many, allowed, work = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
kept = []
walk(small, work / "small")
with open("/proc/self/status") as file:
    (now,) = [int(line.split()[1]) * 1024 for line in file if line.startswith("VmData")]
resource.setrlimit(resource.RLIMIT_DATA, (now + allowed * 2**20, resource.RLIM_INFINITY))
walk(many, work / "many")
"""

SMALL, MANY = 8_000, 80_000
# DuckDB's own limit, 96, and what its buffers and Arrow's may differ by. Measured: 118, and 229 with the list below.
MEGABYTES = 160


def curated(folder: Path, keep: str = "pass") -> subprocess.CompletedProcess[str]:
    script = SCRIPT.replace("KEEP", keep)
    arguments = [str(SMALL), str(MANY), str(MEGABYTES), str(folder)]
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )  # fmt: skip


def test_many_rows_need_no_more_memory_than_few(tmp_path: Path) -> None:
    done = curated(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_list_of_rows_does_not_fit(tmp_path: Path) -> None:
    done = curated(tmp_path, "kept.extend(table.to_pylist())")
    assert done.returncode != 0
    assert "MemoryError" in done.stderr or "malloc" in done.stderr or "memory" in done.stderr.lower()
