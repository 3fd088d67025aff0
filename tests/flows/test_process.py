"""The subprocess runner: lines arrive as they come, and nothing that a command started survives its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.process import run_streaming


class Cancelled(BaseException):
    """Stands for Prefect's TerminationSignal, which is no Exception either."""


def run(code: str, tmp_path: Path, on_line=lambda line: None, grace: float = 5.0) -> int:
    command = [sys.executable, "-u", "-c", textwrap.dedent(code)]
    return run_streaming(command, cwd=tmp_path, env=dict(os.environ), on_line=on_line, grace=grace)


def gone(pid: int, within: float = 3.0) -> bool:
    """Whether the process ends (a zombie that its parent has not reaped has ended) within some seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


# A child and a grandchild in a group of its own, as torchrun's workers are; both pids are printed.
FAMILY = """
    import os, signal, subprocess, sys, time
    {setup}
    inner = subprocess.Popen([sys.executable, "-c", {inner!r}], start_new_session={detached}, stdout=subprocess.DEVNULL)
    print(os.getpid(), inner.pid, flush=True)
    while True:
        time.sleep(0.1)
"""
SLEEP = "import time\nwhile True: time.sleep(0.1)"
DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + "while True: time.sleep(0.1)"


def test_lines_of_both_streams_arrive_in_order_and_the_code_comes_back(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr, flush=True); sys.exit(3)"
    assert run(code, tmp_path, lines.append) == 3
    assert lines == ["one", "two"]


def test_lines_arrive_while_the_command_still_runs(tmp_path: Path) -> None:
    arrived: list[float] = []
    started = time.monotonic()
    run("import time; print(1); time.sleep(1.5); print(2)", tmp_path, lambda line: arrived.append(time.monotonic()))
    assert arrived[1] - arrived[0] > 1.0
    assert arrived[0] - started < 1.4


def test_a_last_line_without_newline_and_bytes_that_are_no_text_are_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    run(r"import sys; sys.stdout.buffer.write(b'caf\xe9\rbar'); sys.stdout.flush()", tmp_path, lines.append)
    assert lines == ["caf�", "bar"]


@pytest.mark.parametrize("detached", [False, True])
def test_cancel_ends_child_and_grandchild(tmp_path: Path, detached: bool) -> None:
    pids: list[int] = []

    def cancel(line: str) -> None:
        pids.extend(int(word) for word in line.split())
        raise Cancelled

    started = time.monotonic()
    with pytest.raises(Cancelled):
        run(FAMILY.format(setup="", inner=SLEEP, detached=detached), tmp_path, cancel, grace=2.0)
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert time.monotonic() - started < 100


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    pids: list[int] = []

    def cancel(line: str) -> None:
        pids.extend(int(word) for word in line.split())
        raise Cancelled

    code = FAMILY.format(setup="signal.signal(signal.SIGTERM, signal.SIG_IGN)", inner=DEAF, detached=True)
    started = time.monotonic()
    with pytest.raises(Cancelled):
        run(code, tmp_path, cancel, grace=1.0)
    assert time.monotonic() - started >= 1.0
    assert all(gone(pid) for pid in pids)


def test_the_grace_lets_a_child_save_its_state_and_its_last_words_are_heard(tmp_path: Path) -> None:
    code = """
        import signal, sys, time
        def save(*_):
            time.sleep(0.5); open("saved", "w").write("state"); print("saved", flush=True); sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        print("ready", flush=True)
        while True: time.sleep(0.1)
    """
    lines: list[str] = []

    def cancel(line: str) -> None:
        lines.append(line)
        if line == "ready":
            raise Cancelled

    with pytest.raises(Cancelled):
        run(code, tmp_path, cancel, grace=10.0)
    assert (tmp_path / "saved").read_text() == "state"
    assert lines == ["ready", "saved"]


def test_a_signal_to_the_waiting_process_interrupts_a_silent_child(tmp_path: Path) -> None:
    """Prefect's cancel is a SIGTERM whose handler raises in the main thread, while the stage may print nothing."""

    def handler(*_: object) -> None:
        raise Cancelled

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            run(SLEEP, tmp_path)
        assert time.monotonic() - started < 60
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_stray_that_holds_the_pipe_open_neither_blocks_nor_survives(tmp_path: Path) -> None:
    code = f"""
        import subprocess, sys
        print(subprocess.Popen([sys.executable, "-c", {SLEEP!r}]).pid, flush=True)
    """
    lines: list[str] = []
    started = time.monotonic()
    assert run(code, tmp_path, lines.append, grace=1.0) == 0
    assert time.monotonic() - started < 50
    assert gone(int(lines[0]))


@pytest.mark.parametrize("detached", [False, True], ids=["a group", "a group of its own below it"])
def test_what_a_killed_flow_run_had_started_is_ended(tmp_path: Path, detached: bool) -> None:
    family = textwrap.dedent(FAMILY.format(setup="", inner=SLEEP, detached=detached))
    flow = (
        "import os, sys\nfrom pathlib import Path\nfrom flows.process import run_streaming\n"
        f"run_streaming([sys.executable, '-u', '-c', {family!r}], cwd=Path(), env=dict(os.environ), "
        "on_line=lambda line: print(line, flush=True), grace=5.0)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    killed = subprocess.Popen([sys.executable, "-c", flow], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    pids = [int(word) for word in killed.stdout.readline().split()]
    assert len(pids) == 2
    killed.kill()
    killed.wait()
    assert all(gone(pid, within=30) for pid in pids)
