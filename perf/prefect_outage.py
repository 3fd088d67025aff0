"""Prefect's server killed while a flow run works, and started again: the run ends well, and its slots are free again.

    python -m perf prefect_outage

Real processes on loopback, in a folder of their own. It takes a minute and a half on a quiet machine.
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
from collections.abc import Iterator, Mapping
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
    """What became of the run, and the seconds until its slot was free."""
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
        with _server(port, api, env, kill=True):
            command = [sys.executable, "-c", RUN]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            run = subprocess.Popen(command, cwd=folder, env=env, **pipes)
            assert run.stdout is not None
            run.stdout.readline()
            held = _slots(api)
        (Path(folder) / "go").touch()
        began = time.monotonic()
        with _server(port, api, env, kill=False):
            out, said = run.communicate(timeout=_PATIENCE)
            ended, seconds = (out.split() or [said[-500:]])[-1], time.monotonic() - began
            while _slots(api) and time.monotonic() - began < _PATIENCE:
                time.sleep(1)
            return {"slots held": held, "state": ended, "ended after": seconds, "free after": time.monotonic() - began}


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
