"""Prefect's server killed, or its clock moved, while a flow run works: the run ends well, and its slots are free again.

    python -m perf prefect_outage

Real processes on loopback, in a folder of their own. It takes two and a half minutes on a quiet machine. The clock is
moved by libfaketime (``apt-get install faketime``), for the server alone; without it, that part is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

LEASES = "prefect.server.concurrency.lease_storage.filesystem"  # as infra/local/stack.py sets it
_PATIENCE = 600.0  # seconds for a server's start
RUN = """
import time
from pathlib import Path
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed
from flows.limits import held

@task(cache_policy=NO_CACHE, persist_result=False)
def stage():
    with held("crawl", Path()):
        print("at work", flush=True)
        while not Path("go").exists():
            time.sleep(0.2)
    return Completed(message="stage: done")

@flow(name="outage")
def outage():
    return stage(return_state=True)

print(outage(return_state=True).type.value)
"""


def main() -> dict[str, Any]:
    """What became of the run in each case."""
    found: dict[str, Any] = {"the server is killed": _tried(_killed)}
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    for jump in ("+2d", "-2d") if library else ():
        found[f"its clock jumps by {jump}"] = _tried(lambda *about, jump=jump: _jumped(*about, str(library), jump))
    return found


def _tried(how: Callable[[int, str, dict[str, str], str], dict[str, Any]]) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    with tempfile.TemporaryDirectory(prefix="vitrail-outage-") as folder:
        env = {**os.environ, "PREFECT_HOME": f"{folder}/home", "PREFECT_API_URL": api}
        env |= {
            "PREFECT_CLIENT_MAX_RETRIES": "8",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
            "PYTHONPATH": str(Path.cwd()),
        }
        return how(port, api, env, folder)


def _killed(port: int, api: str, env: dict[str, str], folder: str) -> dict[str, Any]:
    with _server(port, api, env, kill=True):
        run, held = _at_work(api, env, folder)
    (Path(folder) / "go").touch()
    with _server(port, api, env, kill=False):
        return {"slots held": held, **_ended(run, api)}


def _jumped(port: int, api: str, env: dict[str, str], folder: str, library: str, jump: str) -> dict[str, Any]:
    clock = Path(folder) / "clock"
    clock.write_text("+0")
    faked = {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    faked["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"  # as a clock that is set; the kernel's own goes on
    with _server(port, api, env | faked, kill=False):
        run, held = _at_work(api, env, folder)
        clock.write_text(jump)
        time.sleep(70)  # longer than the slots are held without a renewal
        still = _slots(api)
        (Path(folder) / "go").touch()
        return {"slots held": held, "slots held a minute later": still, **_ended(run, api)}


def _at_work(api: str, env: dict[str, str], folder: str) -> tuple[subprocess.Popen[str], int]:
    """A flow run whose stage has begun, and the slots that it holds."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = subprocess.Popen([sys.executable, "-c", RUN], cwd=folder, env=env, **pipes)
    assert run.stdout is not None
    run.stdout.readline()
    return run, _slots(api)


def _ended(run: subprocess.Popen[str], api: str) -> dict[str, Any]:
    began = time.monotonic()
    out, said = run.communicate(timeout=_PATIENCE)
    ended, seconds = (out.split() or [said[-500:]])[-1], time.monotonic() - began
    while _slots(api) and time.monotonic() - began < _PATIENCE:
        time.sleep(1)
    return {"state": ended, "ended after": seconds, "free after": time.monotonic() - began}


@contextlib.contextmanager
def _server(port: int, api: str, env: Mapping[str, str], kill: bool) -> Iterator[None]:
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, env=dict(env), stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{api}/health", timeout=3).close()
                break
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the server does not start")
            time.sleep(0.3)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL if kill else signal.SIGTERM)
        server.wait()


def _slots(api: str) -> int:
    request = urllib.request.Request(
        f"{api}/v2/concurrency_limits/filter", data=b"{}", headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return sum(limit["active_slots"] for limit in json.loads(answer.read()))
