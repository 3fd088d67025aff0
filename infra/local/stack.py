"""The local platform as plain processes: Prefect server, worker, MLflow server.

    python -m infra.local.stack up | down | status        (make platform, make down)

All listen on loopback. State: ``.prefect/`` (Prefect's database), ``mlflow.db`` and ``mlartifacts/``; pid files and
logs: ``.platform/``. ``up`` twice is ``up`` once: what runs and is healthy stays.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.command_line import application, commands_of
from components.errors import VitrailError, run_cli
from components.loopback import spare_loopback
from components.params import load_params
from components.progress import duration
from components.tracking import TrackingParams
from components.tracking.pages import look_at
from flows.settings import PlatformParams, load_platform
from infra.local import automations
from infra.local.servers import Service, require_free, responds
from infra.local.state import ARTIFACTS, MLFLOW_URL, PREFECT_URL

_SERVERS_ALONE = (PREFECT_URL, MLFLOW_URL, automations.ALERT)  # variables that may hold a password
LEASES = "prefect.server.concurrency.lease_storage.filesystem"  # below PREFECT_HOME
_SERVICES = ("prefect", "mlflow", "worker")  # in the order of starting


class Stack:
    """The stack of the checkout at ``root``."""

    def __init__(self, root: Path, params: PlatformParams) -> None:
        self.root = root.resolve()
        self.params = params
        self.folder = self.root / ".platform"
        self.services = {name: Service(name, self.folder) for name in _SERVICES}

    def environment(self) -> dict[str, str]:
        """What every process of the stack gets: this Python's tools first, the URLs, and no telemetry."""
        env = dict(os.environ)
        for line in (self.root / "infra/local/telemetry-off.env").read_text().splitlines():
            name, _, value = line.partition("=")
            env[name] = value
        env |= self.exports()
        env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
        env["VITRAIL_ROOT"] = str(self.root)
        env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its job runners serve language models: 250 MB for nothing
        # A local store is reached through the server, so that runs have a page to link to; a store of the user's own
        # choice (a server in params/tracking.yaml, or the variable) stays.
        if load_params(self.root / "params/tracking.yaml", TrackingParams).uri.startswith("sqlite"):
            env.setdefault("MLFLOW_TRACKING_URI", self.params.mlflow_url)
        return env

    def servers(self) -> dict[str, str]:
        """What the servers alone get: where they keep what they know. Set the variables for PostgreSQL, or for S3.

        An address may hold a password, so it is neither on a command line nor in what flow runs get.
        """
        env = self.environment()
        env.setdefault(MLFLOW_URL, f"sqlite:///{self.root}/mlflow.db")
        env.setdefault(ARTIFACTS, str(self.root / "mlartifacts"))
        # In memory, Prefect's default, a server that is started again forgets who holds which slot, and never frees it.
        env.setdefault("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", LEASES)
        return env

    def runs(self) -> dict[str, str]:
        """What the worker gets, and with it every flow run."""
        env = {name: value for name, value in self.environment().items() if name not in _SERVERS_ALONE}
        # Heartbeats often enough that two may be lost; and patience with a server that is started again.
        env.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(max(30, int(self.params.silent_run / 3))))
        env.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")
        env.setdefault("PREFECT_WORKER_QUERY_SECONDS", str(self.params.worker_poll))
        return env

    def exports(self) -> dict[str, str]:
        """The variables that another terminal needs; prefect.toml holds the first for the shipped port."""
        proxies = {name: value for name in ("NO_PROXY", "no_proxy") if (value := os.environ.get(name))}
        spare_loopback(proxies, self.params.host)
        return {"PREFECT_API_URL": self.params.prefect_api, "PREFECT_HOME": str(self.root / ".prefect"), **proxies}

    def healthy(self, name: str) -> bool:
        """Whether the service runs and answers."""
        if self.services[name].process() is None:
            return False
        if name == "prefect":
            return responds(f"{self.params.prefect_api}/health")
        if name == "mlflow":
            return responds(f"{self.params.mlflow_url}/health")
        return any(worker["status"] == "ONLINE" for worker in self._api("POST", self._pool("workers/filter"), {}))

    def up(self) -> None:
        """Start what does not run, wait until all is healthy, deploy everything in prefect.yaml."""
        began = time.monotonic()
        here = self.params
        python = sys.executable
        for name, port, key in (
            ("prefect", here.prefect_port, "prefect_port"),
            ("mlflow", here.mlflow_port, "mlflow_port"),
        ):
            if self.services[name].process() is None:
                require_free(here.host, port, key, name)
        address = ["--host", here.host, "--port"]
        self._start("prefect", [python, "-m", "prefect", "server", "start", *address, str(here.prefect_port)])
        self._start("mlflow", [python, "-m", "mlflow", "server", "--workers", "1", *address, str(here.mlflow_port)])
        self._wait("prefect")
        self._ensure_pool()
        automations.ensure(self._api, here.silent_run, automations.alert_address())
        worker = ["worker", "start", "--pool", here.work_pool, "--type", "process", "--name", "local"]
        self._start("worker", [python, "-m", "prefect", *worker])
        self._deploy()
        self._wait("worker")
        self._wait("mlflow")
        exports = "".join(f"export {name}={value}\n" for name, value in self.exports().items())
        (self.folder / "env").write_text(exports)
        print(f"the platform is up after {duration(time.monotonic() - began)}")
        self._describe()

    def down(self) -> None:
        """End what `up` started, the worker first, so that it can end its flow runs."""
        for name in reversed(_SERVICES):
            ended = self.services[name].stop(self.params.stop_grace)
            print(f"{name}: {'ended' if ended else 'was not running'}", flush=True)

    def status(self) -> bool:
        """Print one line a service; True when all are healthy."""
        states = {name: self.healthy(name) for name in _SERVICES}
        for name, healthy in states.items():
            process = self.services[name].process()
            running = f"pid {process.pid}" if process else "not running"
            print(f"{name}: {'healthy' if healthy else 'down'} ({running})")
        return all(states.values())

    def _start(self, name: str, command: Sequence[str]) -> None:
        if self.services[name].process() is None:
            print(f"starting {name} (log: {self.services[name].log.relative_to(self.root)})", flush=True)
            self.services[name].start(command, cwd=self.root, env=self.runs() if name == "worker" else self.servers())

    def _wait(self, name: str) -> None:
        self.services[name].wait(lambda: self.healthy(name), self.params.start_timeout)

    def _pool(self, below: str = "") -> str:
        return f"work_pools/{self.params.work_pool}" + (f"/{below}" if below else "")

    def _ensure_pool(self) -> None:
        limit = {"concurrency_limit": self.params.runs_at_once}
        try:
            self._api("POST", "work_pools/", {"name": self.params.work_pool, "type": "process", **limit})
        except urllib.error.HTTPError as fault:
            if fault.code != 409:  # 409: it exists
                raise
            self._api("PATCH", self._pool(), limit)

    def _deploy(self) -> None:
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        done = subprocess.run(command, cwd=self.root, env=self.runs(), capture_output=True, text=True, check=False)
        (self.folder / "deploy.log").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["no output"]
            raise VitrailError(f"prefect deploy failed: {said[-1].strip()} (log: {self.folder / 'deploy.log'})")

    def _api(self, method: str, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.params.prefect_api}/{path}",
            data=json.dumps(body).encode(),
            method=method,
            headers={"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def _describe(self) -> None:
        print(f"Prefect  http://{self.params.host}:{self.params.prefect_port}")
        tracking = load_params(self.root / "params/tracking.yaml", TrackingParams)
        for line in look_at(self.params.mlflow_url, self.params.mlflow_url, tracking.experiment):
            print(f"MLflow   {line}")
        with open(self.root / "prefect.toml", "rb") as file:
            known = tomllib.load(file)["api"]["url"]
        proxied = any(name.lower() in ("http_proxy", "all_proxy") for name in os.environ)
        if known != self.params.prefect_api or proxied:
            print(f"other terminals need:  source {(self.folder / 'env').relative_to(self.root)}")
        print("next:    prefect deployment run pretrain/vitt --watch   (source .venv/bin/activate first)")
        print("end it:  make down")


app = application("platform", "Start, end or check the local Prefect and MLflow servers.", "infra.local.stack")
main = commands_of(app)


@app.command
def up() -> None:
    """Start what does not run: Prefect's server, a worker, MLflow's server; and deploy the flows."""
    Stack(Path.cwd(), load_platform()).up()


@app.command
def down() -> None:
    """End what `up` started."""
    Stack(Path.cwd(), load_platform()).down()


@app.command
def status() -> int:
    """Show which servers are healthy. The exit code is 1 if one is not."""
    return 0 if Stack(Path.cwd(), load_platform()).status() else 1


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
