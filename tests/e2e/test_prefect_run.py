"""A real Prefect server and worker: a run that is watched, cancelled, retried, killed; a preset that is too large."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from chain_helpers import Chain, Repro, edit, run, stage_env
from patience import PATIENCE

from flows.settings import load_platform
from infra.local.stack import Stack

pytestmark = pytest.mark.e2e
STEPS = re.compile(r"\b(\d+)/100,?000 steps")


@dataclass(frozen=True)
class Platform:
    """The stack of a copied checkout, on ports of its own."""

    root: Path
    stack: Stack

    def prefect(self, *arguments: str) -> Repro:
        """The Prefect command line as a user has it: in the checkout, with what ``.platform/env`` exports."""
        return run(self.root, "prefect", *arguments, env=stage_env(**self.stack.exports(), NO_COLOR="1", COLUMNS="400"))

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.stack.params.prefect_api}/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())

    def state(self, flow_run: str) -> dict[str, Any]:
        state: dict[str, Any] = self.api(f"flow_runs/{flow_run}")["state"]
        return state

    def lines(self, flow_run: str) -> list[str]:
        """The newest lines of the run's log, the last one first."""
        asked = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_DESC", "limit": 200}
        return [line["message"] for line in self.api("logs/filter", asked)]

    def steps(self, flow_run: str) -> int:
        """How far its training is."""
        return max((int(found[1]) for line in self.lines(flow_run) if (found := STEPS.search(line))), default=0)

    def stage_processes(self) -> list[psutil.Process]:
        """Processes that train in this checkout."""
        found = []
        for process in psutil.process_iter(["cmdline", "cwd"]):
            words = process.info["cmdline"] or []
            if {"components.pretrain", "run"} <= set(words) and str(process.info["cwd"]).startswith(str(self.root)):
                found.append(process)
        return found


@pytest.fixture(scope="module")
def platform(
    chain: Chain, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[Platform]:
    root = tmp_path_factory.mktemp("platform") / "checkout"
    shutil.copytree(chain.root, root, symlinks=True)
    ports = {"prefect_port": free_port(), "mlflow_port": free_port()}
    edit(root / "params/platform.yaml", {**ports, "stop_grace": 20.0})
    counted = {"PREFECT_SERVER_METRICS_ENABLED": "true", "MLFLOW_EXPOSE_PROMETHEUS": str(root.parent / "prometheus")}
    up = run(root, "infra.local.stack", "up", env=stage_env(**counted))
    platform = Platform(root, Stack(root, load_platform(root)))
    try:
        assert up.code == 0, up.text
        yield platform
    finally:
        down = run(root, "infra.local.stack", "down", env=stage_env())
        print(down.text)
        assert all(service.process() is None for service in platform.stack.services.values())
        assert platform.stage_processes() == []


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.3)
    raise AssertionError(f"{what} not seen within {seconds:.0f} s")


def test_a_deployment_trains_on_the_worker_and_watch_follows_it(platform: Platform) -> None:
    edit(platform.root / "params/pretrain/vitt.yaml", {"run.iterations": 10})
    done = platform.prefect("deployment", "run", "pretrain/vitt", "--watch")
    assert done.code == 0, done.text
    assert "Flow run finished successfully" in done.text
    assert re.search(r"\b10/10\b", done.text), "the stage's own lines are shown"
    artifacts = {entry["key"] for entry in platform.api("artifacts/filter", {})}
    assert {"pretrain-vitt-progress", "pretrain-vitt-metrics", "pretrain-vitt-mlflow"} <= artifacts
    bar = next(a for a in platform.api("artifacts/filter", {}) if a["key"] == "pretrain-vitt-progress")
    assert bar["data"] == 100.0
    assert (platform.root / "data/pretrain/vitt/model.json").is_file()
    # The run in MLflow names the flow run, and the flow run links the run in MLflow.
    flow_run = re.search(r"UUID: (\S+)", done.text)
    assert flow_run is not None
    link = next(a["data"] for a in platform.api("artifacts/filter", {}) if a["key"] == "pretrain-vitt-mlflow")
    run_id = re.search(r"/runs/(\w+)", link)
    assert run_id is not None
    url = f"{platform.stack.params.mlflow_url}/api/2.0/mlflow/runs/get?run_id={run_id[1]}"
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        recorded = json.loads(answer.read())["run"]
    assert flow_run[1] in {tag["value"] for tag in recorded["data"]["tags"]}
    assert recorded["info"]["status"] == "FINISHED"
    for metrics in (f"{platform.stack.params.prefect_api}/metrics", f"{platform.stack.params.mlflow_url}/metrics"):
        with urllib.request.urlopen(metrics, timeout=PATIENCE) as answer:  # as Prometheus asks
            assert b"# TYPE " in answer.read(), metrics


def test_a_cancelled_run_is_ended_its_retry_resumes_and_a_killed_workers_run_saves_and_ends(platform: Platform) -> None:
    edit(platform.root / "params/pretrain/vitt.yaml", {"run.iterations": 100_000})
    started = platform.prefect("deployment", "run", "pretrain/vitt")
    found = re.search(r"UUID: (\S+)", started.text)
    assert found is not None, started.text
    flow_run = found[1]
    wait_for(lambda: platform.steps(flow_run), PATIENCE, "a step")
    processes = platform.stage_processes()
    assert processes
    cancelled = platform.prefect("flow-run", "cancel", flow_run)
    assert cancelled.code == 0, cancelled.text
    psutil.wait_procs(processes, timeout=PATIENCE)
    assert platform.stage_processes() == []
    wait_for(lambda: platform.state(flow_run)["type"] == "CANCELLED", PATIENCE, "the state CANCELLED")

    retried = platform.prefect("flow-run", "retry", flow_run)
    assert retried.code == 0, retried.text
    wait_for(lambda: any("resuming after step" in line for line in platform.lines(flow_run)), PATIENCE, "a resume")
    services = {name: service.process() for name, service in platform.stack.services.items()}
    worker, processes = services.pop("worker"), platform.stage_processes()
    assert worker is not None
    assert processes
    worker.kill()  # its runs cannot print any more: they end, and their stages save
    psutil.wait_procs(processes, timeout=PATIENCE)
    assert platform.stage_processes() == []
    wait_for(lambda: platform.state(flow_run)["type"] == "CRASHED", PATIENCE, "the state CRASHED")
    assert any("the checkpoint is in scratch/pretrain/vitt" in line for line in platform.lines(flow_run))
    again = run(platform.root, "infra.local.stack", "up", env=stage_env())
    assert again.code == 0, again.text
    assert {name: platform.stack.services[name].process() for name in services} == services  # what ran stayed
    status = run(platform.root, "infra.local.stack", "status", env=stage_env())
    assert status.text.count("healthy") == 3, status.text


def test_a_preset_that_does_not_fit_fails_in_seconds_with_what_it_needs(platform: Platform) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("left out: this machine has a GPU, so what does not fit here differs")
    done = platform.prefect("deployment", "run", "pretrain/vitg", "--watch")
    assert done.code == 1
    flow_run = re.search(r"UUID: (\S+)", done.text)
    assert flow_run is not None, done.text
    state = platform.state(flow_run[1])
    assert state["type"] == "FAILED"
    assert re.search(r"vitg\.yaml: needs .* found .* presets that fit here: .*vitt", state["message"]), state["message"]
    assert "\n" not in state["message"]
    assert "needs" in done.text
    flow = platform.api(f"flow_runs/{flow_run[1]}")
    assert flow["total_run_time"] < 30
    assert not (platform.root / "runs/pretrain-vitg").exists()


def test_no_run_edited_a_tracked_file(platform: Platform) -> None:
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=platform.root, capture_output=True, text=True, check=True
    ).stdout
    allowed = {"dvc.lock", "params/"}  # the lock is DVC's; params are what these tests edited
    lines = [line[3:] for line in changed.splitlines()]
    assert [line for line in lines if not line.startswith(tuple(allowed))] == []
