"""1,000 checkpoints with 20 metrics each in MLflow on PostgreSQL: the queries that its pages of comparison make.

    python -m perf mlflow_checkpoints

They are made through MLflow's server, as the pages do: the first 100 models by one metric, and all of them. The table
of models is what *Models* shows, the table of runs what *Runs* shows. Needs PostgreSQL (apt-get install postgresql).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from perf._postgres import Postgres

CHECKPOINTS, METRICS, RUNS = 1_000, 20, 10
TURNS = 5  # of each query; the median counts
PAGE = 100  # models that a page asks for at once


def main() -> dict[str, Any]:
    """Seconds of each query, and of writing one checkpoint."""
    from mlflow import MlflowClient

    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    with Postgres("perf") as database:
        _sql(f"{database.url}/postgres", "CREATE DATABASE mlflow")
        store = database.url.replace("://", "+psycopg2://") + "/mlflow"
        port = _free()
        env = os.environ | {"MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--workers",
            "1",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(command, env=env, stdout=quiet, stderr=quiet, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            _answering(f"{address}/health", server)
            client = MlflowClient(tracking_uri=address)
            return _measured(client)
        finally:
            server.terminate()
            server.wait()


def _measured(client: Any) -> dict[str, Any]:
    from mlflow.entities import Metric

    experiment = client.create_experiment("checkpoints")
    began = time.perf_counter()
    for number in range(RUNS):
        run = client.create_run(experiment).info.run_id
        for step in range(CHECKPOINTS // RUNS):
            model = client.create_logged_model(experiment, name=f"vitt-{number}-{step}", source_run_id=run)
            client.finalize_logged_model(model.model_id, "READY")
            scores = [(f"score/{at}", (number * 7919 + step * 104729 + at) % 1000 / 1000) for at in range(METRICS)]
            points = [Metric(name, value, 1, step, model.model_id, run_id=run) for name, value in scores]
            client.log_batch(run, metrics=points)
    wrote = time.perf_counter() - began
    order = [{"field_name": "metrics.score/7", "ascending": False}]

    def page() -> list[Any]:
        found = client.search_logged_models([experiment], order_by=order, max_results=PAGE)
        assert len(found) == PAGE
        return list(found)

    def every() -> list[Any]:
        found, token = [], None
        while True:
            part = client.search_logged_models([experiment], order_by=order, max_results=PAGE, page_token=token)
            found += part
            token = part.token
            if not token:
                break
        assert len(found) == CHECKPOINTS
        assert all(len(model.metrics) == METRICS for model in found)
        return found

    queries: dict[str, Callable[[], Any]] = {
        f"the {PAGE} best of {CHECKPOINTS} models by one metric": page,
        f"all {CHECKPOINTS} models with their {METRICS} metrics": every,
        "those above a score": lambda: client.search_logged_models(
            [experiment], filter_string="metrics.`score/7` > 0.9", order_by=order, max_results=PAGE
        ),
        f"the {RUNS} runs": lambda: client.search_runs([experiment], order_by=["metrics.`score/7` DESC"]),
    }
    found: dict[str, Any] = {"target": "2 s a query", "writing one checkpoint": round(wrote / CHECKPOINTS, 4)}
    return found | {name: _median(query) for name, query in queries.items()}


def _median(query: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(TURNS):
        began = time.perf_counter()
        query()
        seconds.append(time.perf_counter() - began)
    return round(sorted(seconds)[TURNS // 2], 3)


def _free() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _sql(url: str, statement: str) -> None:
    import psycopg2

    connection = psycopg2.connect(url)
    connection.autocommit = True
    connection.cursor().execute(statement)
    connection.close()


def _answering(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 600
    while True:
        try:
            urllib.request.urlopen(url, timeout=3).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError("MLflow's server does not start") from None
            time.sleep(0.3)
