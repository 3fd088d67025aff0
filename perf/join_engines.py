"""The joins between curation's passes, by three engines: seconds of each, and whether all give the same rows.

    VITRAIL_PERF_ENGINES=100000,1000000 python -m perf join_engines

* **duckdb**: one process, two threads, 512 MB, as the stages join.
* **ray_data**: Ray Data on two nodes of this machine with one CPU each, eight partitions.
* **partitions**: the same nodes; DuckDB cuts the tables into eight hash partitions and joins each, in Ray tasks.

**unique** makes links unique by address (half as many addresses as links), **decisions** joins decisions to an index by
key. The start of the cluster is not counted. Rows are compared by a sum of their hashes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from perf._two_nodes import patient, two_nodes

ROOT = Path(__file__).resolve().parents[1]
PARTS, MEGABYTES, FILES = 8, 512, 4
_ADDRESS = "'http://host' || one % 9973 || '.test/a/path/of/some/length/' || lpad(one::VARCHAR, 12, '0') || '.jpg'"
TABLES = {
    "links": f"""SELECT range AS position, {_ADDRESS} AS url, 'http://page' || one % 9973 AS page,
                        (one % 100 = 0)::TINYINT AS opt_out
                 FROM (SELECT range, (hash(range) % greatest($rows // 2, 1))::BIGINT AS one
                       FROM range($start, $stop))""",
    "index": """SELECT sha256(range::VARCHAR)[:20] AS key, range // 1000 || '.tar' AS shard, range * 4096 AS place
                FROM range($start, $stop)""",
    "decisions": """SELECT sha256(range::VARCHAR)[:20] AS key, if(range % 3 = 0, 'self-duplicate', '') AS reason
                    FROM range($start, $stop) ORDER BY hash(range)""",
}
UNIQUE = """
    SELECT link.position, link.url, link.page, first.opt_out FROM read_parquet($links) AS link
    JOIN (SELECT min(position) AS position, max(opt_out) AS opt_out FROM read_parquet($links) GROUP BY url) AS first
    ON link.position = first.position
"""
DECISIONS = """
    SELECT one.key, one.shard, one.place, decision.reason
    FROM read_parquet($index) AS one JOIN read_parquet($decisions) AS decision USING (key)
"""


def main() -> dict[str, object]:
    """Seconds by engine and size; each runs in a process of its own."""
    found: dict[str, object] = {}
    for rows in os.environ.get("VITRAIL_PERF_ENGINES", "100000").split(","):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            make(int(rows), Path(folder))
            for engine in ENGINES:
                command = [sys.executable, "-m", "perf.join_engines", engine, folder]
                done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
                found[f"{engine} {int(rows):,}"] = json.loads(done.stdout.splitlines()[-1])
    return found


def make(rows: int, folder: Path) -> None:
    """The three tables, in four files each."""
    for name, query in TABLES.items():
        (folder / name).mkdir()
        for number in range(FILES):
            given: dict[str, object] = {"start": rows * number // FILES, "stop": rows * (number + 1) // FILES}
            given |= {"rows": rows} if "$rows" in query else {}
            _write(_database(folder, 2), query, given, folder / name / f"{number}.parquet")


def by_duckdb(folder: Path, out: Path) -> dict[str, float]:
    """One process."""
    connection = _database(out, 2)
    return _timed({
        "unique": lambda: _write(connection, f"{UNIQUE} ORDER BY link.position", {"links": _files(folder / "links")},
                                 out / "unique/0.parquet"),
        "decisions": lambda: _write(connection, DECISIONS,
                                    {name: _files(folder / name) for name in ("index", "decisions")},
                                    out / "decisions/0.parquet"),
    })  # fmt: skip


def by_ray_data(folder: Path, out: Path) -> dict[str, float]:
    """Ray Data's groupby and join."""
    with _cluster() as ray:
        from ray.data.aggregate import Max, Min

        ray.data.DataContext.get_current().enable_progress_bars = False

        def unique() -> None:
            links = ray.data.read_parquet(str(folder / "links"))
            least = Min("position", alias_name="position"), Max("opt_out", alias_name="opt_out")
            first = links.groupby("url", num_partitions=PARTS).aggregate(*least).select_columns(["position", "opt_out"])
            texts = links.select_columns(["position", "url", "page"])
            texts.join(first, "inner", PARTS, on=("position",)).write_parquet(str(out / "unique"))

        def decisions() -> None:
            index, decided = (ray.data.read_parquet(str(folder / name)) for name in ("index", "decisions"))
            index.join(decided, "inner", PARTS, on=("key",)).write_parquet(str(out / "decisions"))

        return _timed({"unique": unique, "decisions": decisions})


def by_partitions(folder: Path, out: Path) -> dict[str, float]:
    """DuckDB cuts and joins, a Ray task a file and a partition."""
    with _cluster() as ray:
        task = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
        cut_on, join_on = task(_cut), task(_joined)

        def cut(name: str, key: str) -> list[str]:
            cuts = [out / f"cut-{name}-{number}" for number in range(FILES)]
            ray.get([cut_on.remote(file, key, one) for file, one in zip(_files(folder / name), cuts, strict=True)])
            return [str(one) for one in cuts]

        def joined(name: str, query: str, tables: Mapping[str, list[str]]) -> None:
            ray.get([
                join_on.remote(query, {table: [f"{one}/part={part}/*.parquet" for one in cuts]
                                       for table, cuts in tables.items()}, out / name / f"{part}.parquet")
                for part in range(PARTS)
            ])  # fmt: skip

        return _timed({
            "unique": lambda: joined("unique", UNIQUE, {"links": cut("links", "url")}),
            "decisions": lambda: joined("decisions", DECISIONS,
                                        {name: cut(name, "key") for name in ("index", "decisions")}),
        })  # fmt: skip


ENGINES: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "duckdb": by_duckdb, "ray_data": by_ray_data, "partitions": by_partitions,
}  # fmt: skip


def _cut(file: str, key: str, out: Path) -> None:
    query = f"SELECT *, hash({key}) % {PARTS} AS part FROM read_parquet($file)"
    _database(out, 1).execute(f"COPY ({query}) TO '{out}' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (part), "
                              "OVERWRITE_OR_IGNORE)", {"file": file})  # fmt: skip


def _joined(query: str, tables: Mapping[str, object], out: Path) -> None:
    _write(_database(out.parent, 1), query, tables, out)


def _database(work: Path, threads: int) -> Any:
    import duckdb

    work.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect()
    for setting in (f"memory_limit = '{MEGABYTES}MB'", f"threads = {threads}", f"temp_directory = '{work}/.spill'",
                    "preserve_insertion_order = false", "enable_progress_bar = false"):  # fmt: skip
        connection.execute(f"SET {setting}")
    return connection


def _write(connection: Any, query: str, given: Mapping[str, object], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    connection.execute(f"COPY ({query}) TO '{out}' (FORMAT parquet, COMPRESSION zstd)", dict(given))


def _files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.parquet"))


@contextlib.contextmanager
def _cluster() -> Iterator[Any]:
    """Ray on two nodes of this machine, one CPU each. A process whose nodes end before it leaves them ends with 1."""
    import logging

    os.environ.update(patient(300))
    os.environ["PYTHONPATH"] = str(ROOT)
    import ray

    nodes = two_nodes(10**9)
    ray.init(address=nodes.address, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield ray
    finally:
        ray.shutdown()
        nodes.shutdown()


def _timed(joins: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    found = {}
    for name, join in joins.items():
        began = time.monotonic()
        join()
        found[name] = round(time.monotonic() - began, 1)
    return found


def _sums(out: Path) -> dict[str, int]:
    """What the rows of both results add up to, in any order."""
    columns = {"unique": "position, url, page, opt_out::BIGINT", "decisions": "key, shard, place, reason"}
    found = {}
    for name, listed in columns.items():
        query = f"SELECT sum(hash({listed})::HUGEINT) % 1000000007 FROM read_parquet($files)"
        ((total,),) = _database(out, 2).execute(query, {"files": _files(out / name)}).fetchall()
        found[f"sum of {name}"] = int(total)
    return found


if __name__ == "__main__":
    ENGINE, FOLDER = sys.argv[1], Path(sys.argv[2]).absolute()
    FOUND = ENGINES[ENGINE](FOLDER, FOLDER / f"out-{ENGINE}")
    print(json.dumps(FOUND | _sums(FOLDER / f"out-{ENGINE}")))
