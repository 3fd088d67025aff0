"""One run at a time in a folder: real processes, kill -9, and files as a run on another machine leaves them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from patience import PATIENCE

from components import lock
from components.errors import VitrailError
from components.lock import hold, this_process

HOLDER = """
import select, sys
from pathlib import Path
from components.errors import run_cli
from components.lock import hold
def main(argv):
    with hold(Path(argv[0])):
        print("held", flush=True)
        select.select([], [], [], float(argv[1]))  # libfaketime spoils time.sleep
        print("done", flush=True)
raise SystemExit(run_cli(main))
"""


def start(folder: Path, seconds: float = 600) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(run: subprocess.Popen[str]) -> bool:
    assert run.stdout is not None
    return run.stdout.readline() == "held\n"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    run = start(tmp_path / "out")
    assert begun(run)
    yield run
    run.kill()
    run.communicate()


def test_a_second_run_is_told_who_holds_the_folder_and_ends(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    second = start(tmp_path / "out")
    printed, said = second.communicate(timeout=PATIENCE)
    assert (second.returncode, printed) == (1, "")
    assert said.startswith(f"error: {tmp_path / 'out'}: in use by process {holder.pid} on ")
    assert f"since {time.strftime('%Y-%m-')}" in said
    assert "components.lock import hold" in said  # its command
    assert said.count("\n") == 1


def test_a_run_that_was_killed_holds_nothing(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".out.lock").exists()
    began = time.monotonic()
    with hold(tmp_path / "out"):
        pass
    assert time.monotonic() - began < lock.SILENCE / 4
    assert not (tmp_path / ".out.lock").exists()


def test_a_killed_run_that_nobody_has_waited_for_holds_nothing(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGKILL)  # a zombie until the fixture waits for it
    while lock._started(holder.pid) is not None:
        time.sleep(0.01)
    with hold(tmp_path / "out"):
        pass


def test_a_run_that_stands_still_keeps_the_folder(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGSTOP)
    old = time.time() - 10 * lock.SILENCE
    os.utime(tmp_path / ".out.lock", (old, old))
    with pytest.raises(VitrailError, match=f"in use by process {holder.pid}"), hold(tmp_path / "out"):
        pass


def test_of_many_that_start_at_once_over_a_dead_holders_lock_one_gets_it(tmp_path: Path) -> None:
    dead = replace(this_process(), pid=2**22 - 3, started=1)
    (tmp_path / ".out.lock").write_text(json.dumps(asdict(dead)))
    runs = [start(tmp_path / "out", 600) for _ in range(6)]
    try:
        losers: list[subprocess.Popen[str]] = []
        while len(losers) < 5:
            losers = [run for run in runs if run.poll() is not None]
            time.sleep(0.05)
        [winner] = [run for run in runs if run not in losers]
        assert begun(winner)
        for run in losers:
            assert f"in use by process {winner.pid} on " in run.communicate()[1]
    finally:
        for run in runs:
            run.kill()
            run.communicate()


def test_the_folder_may_be_named_through_a_link_and_be_moved_while_it_is_held(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "out").symlink_to("big")
    with hold(tmp_path / "out"):
        os.rename(tmp_path / "big", tmp_path / "aside")
        with pytest.raises(VitrailError, match="in use by"), hold(tmp_path / "big"):
            pass


def test_one_process_is_refused_as_another_is_and_names_with_blanks_are_shown(tmp_path: Path) -> None:
    refused = pytest.raises(VitrailError, match=rf"my out: in use by process {os.getpid()}")
    with hold(tmp_path / "my out"), hold(tmp_path / "other"), refused, hold(tmp_path / "my out"):
        pass
    with hold(tmp_path / "my out"):
        pass


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock of a run on another machine, its file made just now; a second without a touch is silence."""
    monkeypatch.setattr(lock, "SILENCE", 1.0)
    monkeypatch.setattr(lock, "SETTLE", 0.1)
    file = tmp_path / ".out.lock"
    file.write_text(json.dumps(asdict(replace(this_process(), system="another boot", host="node7"))))
    return file


def test_another_machines_holder_is_believed_at_its_next_sign_of_life(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touching = threading.Timer(0.5, os.utime, [elsewhere])
    touching.start()
    with pytest.raises(VitrailError, match=r"in use by process .* on node7"), hold(elsewhere.parent / "out"):
        pass
    touching.join()
    assert "waiting up to 1 s for a sign of life" in capsys.readouterr().err


def test_a_clock_that_jumps_costs_another_machines_run_nothing(elsewhere: Path) -> None:
    long_ago = time.time() - 1000 * lock.SILENCE  # as its last sign of life looks once the server's clock has jumped
    os.utime(elsewhere, (long_ago, long_ago))
    touching = threading.Timer(0.5, os.utime, [elsewhere])
    touching.start()
    with pytest.raises(VitrailError, match=r"in use by process .* on node7"), hold(elsewhere.parent / "out"):
        pass
    touching.join()


def test_a_lock_that_looks_old_is_watched_for_less_than_the_whole_silence(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE", float(PATIENCE))
    monkeypatch.setattr(lock, "WATCHED", 0.5)
    os.utime(elsewhere, (1e9, 1e9))
    with hold(elsewhere.parent / "out"):
        assert json.loads(elsewhere.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("flocks", [True, False])
def test_another_machines_holder_that_is_silent_is_dead(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, flocks: bool
) -> None:
    monkeypatch.setattr(lock, "_flocked", lambda handle: flocks)
    with hold(elsewhere.parent / "out"):
        assert json.loads(elsewhere.read_text())["pid"] == os.getpid()


def test_a_lock_that_was_never_written_is_one_of_a_dead_run(elsewhere: Path) -> None:
    elsewhere.write_text("")
    with hold(elsewhere.parent / "out"):
        pass


def test_without_flock_one_of_two_that_find_a_dead_machines_lock_gets_it(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_flocked", lambda handle: False)
    monkeypatch.setattr(lock, "SETTLE", 0.5)
    got, refused, done = [], [], threading.Barrier(3)

    def run() -> None:
        try:
            with hold(elsewhere.parent / "out"):
                got.append(1)
                done.wait(PATIENCE)
        except VitrailError:
            refused.append(1)
            done.wait(PATIENCE)

    runs = [threading.Thread(target=run) for _ in range(2)]
    for one in runs:
        one.start()
    done.wait(PATIENCE)
    for one in runs:
        one.join()
    assert (len(got), len(refused)) == (1, 1)


def test_a_holder_gives_signs_of_life_and_ends_when_it_finds_another_in_its_place(tmp_path: Path) -> None:
    code = "from components import lock; lock.BEAT = 0.1" + HOLDER
    command = [sys.executable, "-c", code, str(tmp_path / "out"), "600"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    file = tmp_path / ".out.lock"
    assert begun(run)
    first = file.stat().st_mtime_ns
    while file.stat().st_mtime_ns == first:
        time.sleep(0.02)
    aside = tmp_path / "aside"
    aside.write_text(json.dumps(asdict(replace(this_process(), host="node8"))))
    os.replace(aside, file)
    _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 1
    assert "was taken by process" in said
    assert "on node8" in said
    assert json.loads(file.read_text())["host"] == "node8"  # left to its holder


FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.mark.skipif(FAKETIME is None, reason="left out: no libfaketime here (apt-get install faketime)")
def test_a_clock_that_jumps_under_a_run_changes_nothing_for_it_nor_for_a_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    monkeypatch.setenv("LD_PRELOAD", str(FAKETIME))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")  # as a clock that is set; the kernel's own goes on
    run = start(tmp_path / "out")
    try:
        assert begun(run)
        for jump in ("+2d", "-2d"):
            clock.write_text(jump)
            second = start(tmp_path / "out", 0)
            _, said = second.communicate(timeout=PATIENCE)
            assert second.returncode == 1
            assert f"in use by process {run.pid}" in said
            assert run.poll() is None
        run.kill()
        run.wait()
        third = start(tmp_path / "out", 0)
        assert begun(third)
        third.communicate(timeout=PATIENCE)
        assert third.returncode == 0
    finally:
        run.kill()
        run.communicate()
