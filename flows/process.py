"""Run one command in its own process group, line by line, and leave nothing of it behind.

A stage is ``dvc -> shell -> python -> (launcher -> ranks)``. Cancelling a flow must end all of them, yet give the
training process time to write its checkpoint, so the group gets SIGTERM, then a grace period, then SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

_TICK = 0.2  # seconds between looks at the child


def run_streaming(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    grace: float,
) -> int:
    """Run ``command`` and hand each line of its output (stdout and stderr, as they come) to ``on_line``.

    Whatever ends the call (the command's own end, cancellation, an error in ``on_line``), no process that the
    command started outlives it: survivors get SIGTERM, ``grace`` seconds, then SIGKILL. Where this very process is
    killed, ``flows/guard.py`` does the same.

    Returns:
        The command's exit code; negative for the signal that ended it.
    """
    guard = [sys.executable, str(Path(__file__).with_name("guard.py")), str(os.getpid()), str(grace)]
    child = subprocess.Popen(
        [*guard, *command],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    # A thread reads, so that the main thread waits where a signal (Prefect's cancel) can raise at once, and so that
    # a child which is saving its state never blocks on a full pipe.
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(child, lines), daemon=True).start()
    try:
        _forward(child, lines, on_line)
        return child.wait()
    finally:
        end_group(child, grace)
        with contextlib.suppress(queue.Empty):
            while (line := lines.get(timeout=_TICK)) is not None:
                on_line(line)


def _read(child: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line.rstrip("\r\n"))
    lines.put(None)


def _forward(
    child: subprocess.Popen[str], lines: queue.SimpleQueue[str | None], on_line: Callable[[str], None]
) -> None:
    """Hand lines on until the output ends, or the child has ended and the pipe (held open by a stray) is silent."""
    while True:
        try:
            line = lines.get(timeout=_TICK)
        except queue.Empty:
            if child.poll() is not None:
                return
            continue
        if line is None:
            return
        on_line(line)


def end_group(child: subprocess.Popen[str], grace: float) -> None:
    """End every process of ``child``'s group and every descendant that moved to a group of its own."""
    known = {process.pid: process for process in _members(child.pid)}
    if not _alive(known.values()):
        child.poll()
        return
    _signal_group(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    try:
        while time.monotonic() < deadline:
            known |= {process.pid: process for process in _members(child.pid)}
            child.poll()  # reaps it, if it has ended
            if not _alive(known.values()):
                return
            time.sleep(_TICK)
    finally:
        # Reached early only by a second signal: there is no time left to be polite.
        for process in _alive(known.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _signal_group(child.pid, signal.SIGKILL)
        child.wait()


def _members(leader: int) -> list[psutil.Process]:
    """Living processes of the group ``leader`` and their descendants."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == leader:
                found += [process, *process.children(recursive=True)]
    return found


def _alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those still running; a zombie (ended, not yet reaped by its parent) counts as ended."""
    living = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
