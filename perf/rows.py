"""What curation's tables cost as they grow: peak memory of the driver and rows a second, at several sizes.

    VITRAIL_PERF_ROWS=100000,1000000 python -m perf rows

* **curate**: the whole stage, models off, two workers, over tar shards of small real JPEGs (64 x 64, all different).
  The memory is the driver's own, its worker processes left out.
* **joins**: synthetic links of half as many addresses made unique, numbered and judged in one process; no images.

Each size runs in a process of its own. Memory is the largest resident set (VmHWM), in megabytes; it should not depend
on the size. ``VITRAIL_PERF_JOINS`` gives the sizes of the joins.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
A_SHARD, A_TABLE = 20_000, 1_000_000  # images a tar, links a table
# components.tables.schemas.LINKS; which address a link has is drawn by a hash of its position
_LINKS = """
    SELECT position, format('http://host{}.test/a/path/of/some/length/{:012d}.jpg', one % 9973, one) AS url,
           format('http://page{}.test/{:06d}', one % 9973, one % 1000) AS page, '' AS alt, '' AS licence, '' AS reason,
           one % 100 = 0 AS opt_out, '' AS said, '' AS source, position - $start AS source_offset
    FROM (
        SELECT range AS position, (hash(range) % $addresses)::BIGINT AS one FROM range($start::BIGINT, $end::BIGINT)
    )
"""


def main() -> dict[str, object]:
    """Figures of each kind and size."""
    figures: dict[str, object] = {"target": "memory within 10 % over all sizes, the rate at the largest within 20 %"}
    for kind, name, usual in (("curate", "VITRAIL_PERF_ROWS", "20000"), ("joins", "VITRAIL_PERF_JOINS", "2000000")):
        for count in (int(size) for size in os.environ.get(name, usual).split(",") if size):
            with tempfile.TemporaryDirectory(dir=".") as folder:
                command = [sys.executable, "-m", "perf.rows", kind, str(count), folder]
                done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            figures[f"{kind} {count:,}"] = json.loads(done.stdout.splitlines()[-1])
    return figures


def curate(folder: Path) -> None:
    """The stage over what :func:`shards` made."""
    from components.context import StageContext
    from components.curate import stage
    from components.curate.params import CurateParams
    from components.params import load_params
    from components.storage import StorageParams
    from components.web.sources.sources_json import register

    storage = StorageParams(root="data")
    (folder / "crawl").mkdir()
    register(str(folder / "in"), storage).save(folder / "crawl")
    sets = ["nsfw.enabled=false", "faces.enabled=false", "chunk=4096", "executor.workers=2", "least_kept=0"]
    params = load_params(ROOT / "params/curate.yaml", CurateParams, sets)
    context = StageContext(storage, None, folder / "report.json")
    stage.run(params, stage.CurateInputs(folder / "crawl"), folder / "out", context)


def shards(count: int, folder: Path) -> None:
    """Tar shards of ``count`` JPEGs in ``folder``/in, all different, some of them twice."""
    from components.images.decode import encode_jpeg

    folder = folder / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for start in range(0, count, A_SHARD):
        with tarfile.open(folder / f"{start:012d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            data = b""
            for number in range(start, min(start + A_SHARD, count)):
                if number % 50 or not data:
                    small = rng.integers(0, 256, (8, 8, 3), np.uint8)
                    data = encode_jpeg(np.repeat(np.repeat(small, 8, 0), 8, 1), 50)
                info = tarfile.TarInfo(f"{number:012d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def joins(folder: Path) -> None:
    """What :func:`links` made is made unique, numbered and judged."""
    from components.curate.links.addresses import Gathering, Met
    from components.curate.links.gather import _NAMED, _joined
    from components.curate.links.judge import items, judge
    from components.curate.params import CurateParams
    from components.params import load_params
    from components.storage import open_store
    from components.tables.database import database, write_file

    params = load_params(ROOT / "params/curate.yaml", CurateParams, ["memory.megabytes=2000"])
    tables = [str(path) for path in sorted(folder.glob("links-*.parquet"))]
    how = Gathering(
        open_store(str(folder)), folder, folder, params.policy, 1, params.sandbox, params.memory, params.executor
    )
    with database(params.memory, folder) as connection:
        write_file(connection, _NAMED, {"tables": tables}, folder / "named.parquet")
        met = _joined(connection, [Met([folder / "named.parquet"], "warc")], how)
    for item in items(met, params.policy, folder, params.chunk):
        judge(item)


def links(count: int, folder: Path) -> None:
    """Tables of ``count`` links to half as many addresses."""
    import duckdb

    connection = duckdb.connect()
    for start in range(0, count, A_TABLE):
        path = folder / f"links-{start:012d}.parquet"
        connection.execute(f"COPY ({_LINKS}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)", {
            "start": start, "end": min(start + A_TABLE, count), "addresses": max(count // 2, 1),
        })  # fmt: skip


def _measured(kind: str, count: int, folder: Path) -> dict[str, float]:
    make, work = {"curate": (shards, curate), "joins": (links, joins)}[kind]
    make(count, folder)
    began, before = time.monotonic(), os.times()
    work(folder)
    seconds = time.monotonic() - began
    status = Path("/proc/self/status").read_text()
    (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    used = sum(now - then for now, then in zip(os.times()[:4], before[:4], strict=True))
    return {
        "rows": count, "driver_peak_mb": round(peak / 1024), "seconds": round(seconds, 1),
        "cpu_seconds": round(used, 1),
        "rows_a_second": round(count / seconds, 1),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(_measured(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
