"""Joins on disk: within their memory, nothing left behind, and faults as one line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.errors import VitrailError
from components.tables.database import MemoryParams, database, stream, write_file, write_query
from components.tables.parts import part_rows, read_table
from components.tables.schemas import declared

NUMBERS = declared("numbers", 1, "curate", [("n", pa.int64()), ("text", pa.string())])
QUERY = "SELECT range AS n, md5(range::VARCHAR) AS text FROM range($count) ORDER BY text"
SORTED = "SELECT range AS n, repeat(md5(range::VARCHAR), 10) AS text FROM range(1200000) ORDER BY md5(text)"


def test_results_are_written_in_parts_and_in_one_file(tmp_path: Path) -> None:
    with database(MemoryParams(), tmp_path / "work") as connection:
        assert write_query(connection, QUERY, {"count": 100}, tmp_path / "numbers", NUMBERS, 30) == 100
        assert write_file(connection, QUERY, {"count": 100}, tmp_path / "it's.parquet") == 100
        total = sum(len(batch) for batch in stream(connection, QUERY, {"count": 5}))
    assert total == 5
    assert part_rows(tmp_path / "numbers", NUMBERS) == [30, 30, 30, 10]
    one = pq.read_table(tmp_path / "it's.parquet")
    assert read_table(tmp_path / "numbers", NUMBERS).to_pylist() == one.to_pylist()
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("named", [False, True])
def test_a_full_spill_folder_is_one_line_and_leaves_nothing(tmp_path: Path, named: bool) -> None:
    spill = tmp_path / "spill" if named else None
    memory = MemoryParams(megabytes=64, threads=1, spill=spill, spill_gigabytes=0.02)
    with pytest.raises(VitrailError) as caught, database(memory, tmp_path / "work") as connection:
        write_query(connection, SORTED, {}, tmp_path / "numbers", NUMBERS)
    assert f"{spill or tmp_path / 'work'}: the spill folder is full" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "numbers").exists()
    assert not list((spill or tmp_path / "work").iterdir())


def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(VitrailError, match=r"memory\.megabytes: 64 are too few"),
        database(MemoryParams(megabytes=64, threads=1), tmp_path) as connection,
    ):
        stream(connection, "SELECT list(repeat('x', 1000) || range) FROM range(1000000)").read_all()


def test_other_faults_stay_what_they_are(tmp_path: Path) -> None:
    import duckdb

    with pytest.raises(duckdb.Error, match="nothing"), database(MemoryParams(), tmp_path) as connection:
        stream(connection, "SELECT * FROM nothing")


def test_what_a_killed_process_spilled_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".spill-{socket.gethostname()}-{ended.pid}-x").mkdir()
    mine = tmp_path / f".spill-{socket.gethostname()}-{os.getpid()}-x"
    mine.mkdir()
    with database(MemoryParams(), tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [mine]


def test_a_result_larger_than_memory_is_streamed(tmp_path: Path) -> None:
    script = f"""
import resource, sys
from pathlib import Path
from components.tables.database import MemoryParams, database, stream
with database(MemoryParams(megabytes=128, threads=1), Path({str(tmp_path)!r})) as connection:
    next(iter(stream(connection, "SELECT 1")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = sum(len(batch) for batch in stream(connection, {SORTED!r}))
assert rows == 1200000
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
assert grown < 250, grown  # of 400 MB
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).resolve().parents[3])
