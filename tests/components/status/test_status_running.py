"""``vitrail status``: runs that hold a folder, seen from another process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from patience import PATIENCE

from components.lock import SILENCE, hold, look, this_process
from components.status.run import held_folders, main, shown

ROOT = Path(__file__).resolve().parents[3]
RUN = """
import sys, time
from pathlib import Path
from components.lock import hold
from components.progress import Progress
with hold(Path(sys.argv[1])):
    Progress("pretrain vitt", 600, unit="steps").advance(120)
    print("begun", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_of_another_process_is_shown_until_it_is_killed(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, "scratch/pretrain/vitt"], stdout=subprocess.PIPE, env=env, text=True
    )
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == "begun\n"
        assert main([]) == 0
        out = capsys.readouterr().out
        assert "scratch/pretrain/vitt\n" in out
        assert f"process {run.pid} on " in out
        assert "pretrain vitt: 0/600 steps   (" in out
        assert " ago)" in out
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate(timeout=PATIENCE)
    assert main([]) == 0
    assert capsys.readouterr().out == "nothing is running here\n"
    assert [held.alive for held in held_folders(checkout)] == [False]


def test_two_folders_of_one_run_are_one_entry(checkout: Path) -> None:
    with hold(checkout / "data/pretrain/vitt"), hold(checkout / "scratch/pretrain/vitt"):
        lines = shown(held_folders(checkout), time.time())
    assert len(lines) == 3
    assert lines[0].endswith("scratch/pretrain/vitt")
    assert lines[2] == "  no progress has been shown yet"


def test_another_machines_run_is_alive_as_long_as_it_gives_signs(checkout: Path) -> None:
    lock = checkout / "data/.curate.lock"
    lock.parent.mkdir()
    lock.write_text(json.dumps(asdict(replace(this_process(), host="node8", system="another"))))
    assert [held.alive for held in held_folders(checkout)] == [True]
    old = time.time() - SILENCE - 10
    os.utime(lock, (old, old))
    assert [held.alive for held in held_folders(checkout)] == [False]


def test_what_is_no_lock_is_passed_over(checkout: Path) -> None:
    (checkout / "data").mkdir()
    for name, content in ((".a.lock", ""), (".b.lock", "{}"), (".c.lock", "[1]"), (".d.lock", "\udcff")):
        (checkout / "data" / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert held_folders(checkout) == []
    assert look(checkout / "data/.none.lock") is None


def test_a_preset_in_its_own_workspace_is_found(checkout: Path) -> None:
    with hold(checkout / "runs/pretrain-vits/scratch/pretrain/vits"):
        assert len(held_folders(checkout)) == 1
