"""Ranks of launches, forked from one process: what takes seconds to import, torch and DeepSpeed, is imported once."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from patience import PATIENCE

HERE = Path(__file__).resolve().parent
OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def run_worker(worker: Path, *arguments: object) -> None:
    """Run a script that calls :func:`launch`; fail with what it printed."""
    env = {name: value for name, value in os.environ.items() if name not in OWN} | {"OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])
    command = [sys.executable, str(worker), *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stderr[-3000:]


def launch(work: Callable[[], None], sizes: Sequence[int], logs: Path) -> None:
    """Launches of ``sizes`` ranks, side by side; each rank does ``work`` and has the variables that torchrun sets.

    What they print goes to files in ``logs``. Call it before the first thread starts and before torch computes.

    Raises:
        SystemExit: a rank failed, or took too long; the others are ended, and its log is the message.
    """
    gc.collect()
    gc.freeze()
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[int, Path] = {}
    for size in sizes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        for rank in range(size):
            own = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
            own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            log = logs / f"log-{rank}-of-{size}"
            running[_forked(work, own if size > 1 else {}, log)] = log
    until = time.monotonic() + PATIENCE
    try:
        while running:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process:
                log = running.pop(process)
                if status:
                    raise SystemExit(f"{log.name} ended with {status}\n{log.read_text(errors='replace')}")
            elif time.monotonic() > until:
                raise SystemExit(f"not done after {PATIENCE} s: {sorted(log.name for log in running.values())}")
            else:
                time.sleep(0.05)
    finally:
        for process in running:
            os.kill(process, signal.SIGKILL)


def _forked(work: Callable[[], None], own: dict[str, str], log: Path) -> int:
    """The process that does ``work``."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(own)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
