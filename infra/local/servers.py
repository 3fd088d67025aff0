"""One detached process of the local stack: started with a log and a pid file, asked for its health, ended by pid."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from components.errors import VitrailError

_LOG_LINES = 12  # of a failed server's log, looked through for what to show


class Service:
    """A process named ``name`` whose pid file and log are in ``folder``."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._pid_file = folder / f"{name}.json"

    def process(self) -> psutil.Process | None:
        """The running process that this stack started, or None; a recycled pid does not count."""
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, psutil.NoSuchProcess):
            known = json.loads(self._pid_file.read_text())
            process = psutil.Process(known["pid"])
            if process.create_time() == known["created"] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def start(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        """Start ``command`` detached: it outlives this process and its terminal."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "w") as log:
            child = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        created = psutil.Process(child.pid).create_time()
        self._pid_file.write_text(json.dumps({"pid": child.pid, "created": created}))

    def wait(self, healthy: Callable[[], bool], timeout: float) -> None:
        """Return once ``healthy()``.

        Raises:
            VitrailError: the process ended, or ``timeout`` seconds passed; the message quotes its log.
        """
        deadline = time.monotonic() + timeout
        while not healthy():
            if self.process() is None:
                raise VitrailError(f"{self.name} ended while starting: {self._last_words()} (whole log: {self.log})")
            if time.monotonic() > deadline:
                raise VitrailError(f"{self.name} is not healthy after {timeout:.0f} s; its log: {self.log}")
            time.sleep(0.3)

    def stop(self, grace: float) -> bool:
        """End the process and everything it started: SIGTERM, ``grace`` seconds, SIGKILL. False: none was running."""
        process = self.process()
        if process is None:
            self._pid_file.unlink(missing_ok=True)
            return False
        below = process.children(recursive=True)
        _signal([process], "terminate")
        _, alive = psutil.wait_procs([process], timeout=grace)
        # What the process has not ended itself: flow runs of a worker, uvicorn below Prefect's server.
        below = [child for child in below if child.is_running()]
        _signal(below, "terminate")
        _, left = psutil.wait_procs(below, timeout=grace)
        _signal([*alive, *left], "kill")
        psutil.wait_procs([*alive, *left], timeout=5)
        self._pid_file.unlink(missing_ok=True)
        return True

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines[-_LOG_LINES:] if "rror" in line]
        return (telling or lines or ["it printed nothing"])[-1]


def responds(url: str) -> bool:
    """Whether ``url`` answers with success."""
    # Loopback: whatever proxy the environment names is not meant for it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=3) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def require_free(host: str, port: int, key: str, name: str) -> None:
    """Raise VitrailError, naming the parameter ``key`` to change, when something else listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as fault:
            raise VitrailError(
                f"{host}:{port} is taken ({os.strerror(fault.errno or 0)}), so {name} cannot start; end what listens "
                f"there or set another {key} in params/platform.yaml"
            ) from None


def _signal(processes: Sequence[psutil.Process], method: str) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(process, method)()
