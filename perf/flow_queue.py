"""The platform's own time: until it is healthy, what Prefect and DVC add to a stage, and 20 flow runs queued at once.

    python -m perf flow_queue

A copy of the checkout on ports of its own, with the servers and the worker that ``make platform`` starts. The stage of
the flow ``dedup`` is put in place of one that notes when it begins and ends, so all else is Prefect, DVC and Python's
start. Seconds by the clock. Each run works in a git checkout of its own, whose result is brought back; a single one is
measured in the shared checkout, too (``own_checkout: false``).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from flows.settings import PlatformParams, load_platform

ROOT = Path(__file__).resolve().parents[1]
RUNS = 20
_PATIENCE = 1_800.0  # seconds for all of them
NOTED = "noted.jsonl"
_NOTE = """import json, pathlib, sys, time
began = time.time()
path = pathlib.Path("reports/dedup.json")
path.parent.mkdir(exist_ok=True)
path.write_text("{{}}")
with open({noted!r}, "a") as file:
    print(json.dumps([began, time.time()]), file=file)
"""


def main() -> dict[str, Any]:
    """Seconds, and whether the runs kept to the limits and to their order."""

    with tempfile.TemporaryDirectory(prefix="vitrail-queue-") as folder:
        root = Path(folder) / "checkout"
        _copy(root)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW_"))}
        env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
        platform = load_platform(root)
        command = [sys.executable, "-m", "infra.local.stack"]
        began = time.monotonic()
        try:
            up = subprocess.run([*command, "up"], cwd=root, env=env, capture_output=True, text=True)
            if up.returncode:
                raise RuntimeError(up.stderr[-1000:] or up.stdout[-1000:])
            found: dict[str, Any] = {"healthy after": round(time.monotonic() - began, 1), "goal of it": 60}
            found["a stage beside its own work"] = _one(platform, root)
            found |= _many(platform, root)
            (root / NOTED).unlink()
            _set(root, own_checkout=False)
            return found | {"the same in the shared checkout": _one(platform, root)}
        finally:
            subprocess.run([*command, "down"], cwd=root, env=env, capture_output=True)


def _copy(root: Path) -> None:
    from flows.workspace import checkout_files

    for name in checkout_files(ROOT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    subprocess.run(["git", "init", "-q", root], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "-f"], cwd=root, check=True)
    (root / "note.py").write_text(_NOTE.format(noted=str(root / NOTED)))
    stages = {
        "inputs": {"cmd": "true", "always_changed": True},
        # A checkout of its own takes the results of the stages before.
        "crawl": {"cmd": "echo links > links", "outs": ["links"]},
        "curate": {"cmd": "echo images > images", "outs": ["images"]},
        "dedup": {"cmd": f"{sys.executable} note.py", "always_changed": True},
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    _set(root, prefect_port=_free(), mlflow_port=_free(), start_timeout=600.0)
    flows = yaml.safe_load((root / "prefect.yaml").read_text())  # the limit of the pool alone: runs at once
    for deployment in flows["deployments"]:
        deployment.pop("concurrency_limit", None)
    (root / "prefect.yaml").write_text(yaml.safe_dump(flows))
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "crawl", "curate"], cwd=root, check=True)
    names = ["-c", "user.name=perf", "-c", "user.email=perf@localhost"]
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    subprocess.run(["git", *names, "commit", "-q", "-m", "what is measured"], cwd=root, check=True)


def _set(root: Path, **values: Any) -> None:
    path = root / "params/platform.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def _one(platform: PlatformParams, root: Path) -> dict[str, float]:
    """One flow run of ``inputs`` and one stage: seconds from the worker taking it to its end."""
    run = _wait(platform, [_start(platform)])[0]
    began, ended = json.loads((root / NOTED).read_text().splitlines()[-1])
    (root / NOTED).unlink()
    whole = _time(run["end_time"]) - _time(run["created"])
    return {
        "whole flow run": round(whole, 1),
        "until its flow begins": round(_time(run["start_time"]) - _time(run["created"]), 1),
        "until its stage begins": round(began - _time(run["start_time"]), 1),
        "after its stage": round(_time(run["end_time"]) - ended, 1),
        "goal": 15.0,
    }


def _many(platform: PlatformParams, root: Path) -> dict[str, Any]:
    began = time.monotonic()
    runs = _wait(platform, [_start(platform) for _ in range(RUNS)])
    seconds = time.monotonic() - began
    spans = sorted((_time(run["start_time"]), _time(run["end_time"])) for run in runs)
    at_once = max(sum(start <= other < end for start, end in spans) for other, _ in spans)
    noted = [json.loads(line) for line in (root / NOTED).read_text().splitlines()]
    overlap = sum(later[0] < earlier[1] for earlier, later in itertools.pairwise(noted))
    started = [run["start_time"] for run in runs]  # in the order of their creation
    late = max(sum(other > mine for other in started[:at]) for at, mine in enumerate(started))
    return {
        "runs queued at once": RUNS,
        "states": sorted({run["state"]["name"] for run in runs}),
        "seconds until the last ended": round(seconds, 1),
        "most at once": at_once,
        "runs at once allowed": platform.runs_at_once,
        "stages in one workspace at once": overlap,
        "most runs that one overtook": late,
    }


def _start(platform: PlatformParams) -> str:
    deployment = _api(platform, "deployments/name/dedup/default")["id"]
    return str(_api(platform, f"deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"])


def _wait(platform: PlatformParams, runs: list[str]) -> list[dict[str, Any]]:
    until = time.monotonic() + _PATIENCE
    while True:
        found = [_api(platform, f"flow_runs/{run}") for run in runs]
        failed = [run["state"]["message"] for run in found if run["state_type"] in ("FAILED", "CRASHED", "CANCELLED")]
        if failed:
            raise RuntimeError(f"a run failed: {failed[0]}")
        if all(run["state_type"] == "COMPLETED" for run in found):
            return found
        if time.monotonic() > until:
            raise RuntimeError(f"after {_PATIENCE:.0f} s: {[run['state']['name'] for run in found]}")
        time.sleep(1)


def _api(platform: PlatformParams, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{platform.prefect_api}/{path}", data=data, headers={"Content-Type": "application/json"}
    )
    opener, until = urllib.request.build_opener(urllib.request.ProxyHandler({})), time.monotonic() + _PATIENCE
    while True:
        try:
            with opener.open(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as fault:
            if fault.code != 503 or time.monotonic() > until:  # SQLite is busy; as Prefect does
                raise
            time.sleep(1)


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
