"""Nothing in dedup's joins holds a list, a table or a dictionary of all images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perf.dedup_joins import make

ROOT = Path(__file__).resolve().parents[3]
SIZES = (60_000, 160_000)  # rows: enough that every buffer is full at either
MOST = 60  # bytes a row: 16 in arrays that stay, and those of a step

WALK = """
import json, sys
from pathlib import Path
from components.dedup.decisions import decide
from components.quality import checks
from components.tables.parts import PartWriter
from perf.dedup_joins import held

PartWriter.__init__.__defaults__ = (8192,)  # rows a part: so many are held at either size
checks.finish = lambda *_: {}  # rules are counted; Great Expectations' imports and sample of fixed size are left out
PLANTED
print(json.dumps(held(Path(sys.argv[1]), int(sys.argv[2]), 128)))
"""
LIST_OF_KEYS = """
honest = decide.decide
def with_keys(connection, files, *given):
    keys = connection.execute(f"SELECT key FROM read_parquet('{files.rows}')").fetchall()
    return honest(connection, files, *given), keys
decide.decide = with_keys
"""


def held(folder: Path, rows: int, planted: str = "") -> dict[str, int]:
    """The most bytes that Python, NumPy and Arrow held in each step, in a process of its own."""
    make(folder, rows, a_part=1 << 15)
    command = [sys.executable, "-c", WALK.replace("PLANTED", planted), str(folder), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pools")


def test_memory_grows_by_few_bytes_a_row_and_a_list_of_keys_is_noticed(folder: Path) -> None:
    few, many = (held(folder / str(rows), rows) for rows in SIZES)
    listed = held(folder / str(SIZES[1]), SIZES[1], LIST_OF_KEYS)

    def grown(most: dict[str, int], step: str) -> float:
        return (most[step] - few[step]) / (SIZES[1] - SIZES[0])

    assert {step: a_row for step in few if (a_row := grown(many, step)) > MOST} == {}
    assert grown(listed, "decided") > MOST
