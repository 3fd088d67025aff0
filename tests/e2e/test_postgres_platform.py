"""The platform on a real PostgreSQL with artifacts on S3: up, PostgreSQL killed, backed up, wiped, and brought back."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from chain_helpers import copy_checkout, edit, run, stage_env
from patience import PATIENCE

from flows.settings import load_platform
from infra.local.stack import Stack
from perf._postgres import Postgres, binaries
from perf.prefect_outage import RUN

pytestmark = pytest.mark.e2e
PASSWORD = "planted-password-of-postgres"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL server of its own on loopback."""
    if binaries() is None:
        pytest.skip("left out: no PostgreSQL here (apt-get install postgresql)")
    with Postgres(PASSWORD, durable=True) as server:
        yield server


def killed_in_the_middle(server: Postgres, stack: Stack, client: Any, root: Path) -> None:
    """PostgreSQL dies and comes back while a flow run works and metrics come in: nothing acknowledged is lost."""
    from mlflow.exceptions import MlflowException

    run_id = client.create_run(client.create_experiment("killed")).info.run_id
    acknowledged: list[int] = []

    def log(steps: range) -> None:
        for step in steps:
            with contextlib.suppress(MlflowException):
                client.log_metric(run_id, "loss", 1 / (1 + step), step=step)
                acknowledged.append(step)

    flow_env = {**stack.runs(), "PYTHONPATH": str(root)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    flow = subprocess.Popen([sys.executable, "-c", RUN], cwd=root, env=flow_env, **pipes)
    assert flow.stdout is not None
    until(lambda: flow.stdout.readline().strip() == "at work" or flow.poll() is not None)
    log(range(20))
    writer = threading.Thread(target=log, args=(range(20, 60),))
    writer.start()
    server.kill()
    server.start()
    (root / "go").touch()
    said, _ = flow.communicate(timeout=PATIENCE)
    assert "COMPLETED" in said.split(), said[-2000:]
    writer.join(PATIENCE)
    log(range(60, 62))
    assert {0, 19, 60, 61} <= set(acknowledged)
    until(lambda: stack.healthy("prefect") and stack.healthy("mlflow") and stack.healthy("worker"))
    kept = [point.step for point in client.get_metric_history(run_id, "loss")]
    assert sorted(set(kept)) == sorted(kept)
    assert set(acknowledged) <= set(kept)


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_runs_models_and_deployments_come_back(
    server: Postgres, s3_endpoint: str, tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg2
    from mlflow import MlflowClient

    postgres = server.url

    def sql(database: str, *statements: str) -> list[tuple[str, ...]]:
        connection = psycopg2.connect(f"{postgres}/{database}")
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            found = cursor.fetchall() if cursor.description else []
        connection.close()
        return found

    sql("postgres", "CREATE DATABASE prefect", "CREATE DATABASE mlflow")
    root = tmp_path / "checkout"
    copy_checkout(root)
    edit(root / "params/platform.yaml", {"prefect_port": free_port(), "mlflow_port": free_port(), "stop_grace": 20.0})
    artifacts = f"s3://vitrail-test/{tmp_path.name}/artifacts"
    env = stage_env(
        PREFECT_API_DATABASE_CONNECTION_URL=postgres.replace("://", "+asyncpg://") + "/prefect",
        MLFLOW_BACKEND_STORE_URI=postgres.replace("://", "+psycopg2://") + "/mlflow",
        MLFLOW_ARTIFACTS_DESTINATION=artifacts,
        MLFLOW_S3_ENDPOINT_URL=s3_endpoint,
    )
    stack = Stack(root, load_platform(root))
    up = run(root, "infra.local.stack", "up", env=env)
    try:
        assert up.code == 0, up.text
        client = MlflowClient(tracking_uri=stack.params.mlflow_url)
        experiment = client.create_experiment("kept")
        run_id = client.create_run(experiment).info.run_id
        client.log_metric(run_id, "loss", 0.5, step=3)
        client.log_text(run_id, "weights", "model/weights.txt")
        client.log_text(run_id, "<h1>Copies to review</h1>", "dedup/review.html")
        page = f"{stack.params.mlflow_url}/get-artifact?path=dedup/review.html&run_uuid={run_id}"
        with urllib.request.urlopen(page, timeout=PATIENCE) as answer:  # the server's copy is on S3
            assert answer.read() == b"<h1>Copies to review</h1>"
        client.create_registered_model("teacher")
        client.create_model_version("teacher", f"runs:/{run_id}/model", run_id)
        for process in psutil.process_iter(["cmdline"]):  # nobody reads the password off a process list
            assert PASSWORD not in " ".join(process.info["cmdline"] or [])
        worker = stack.services["worker"].process()
        assert worker is not None
        assert PASSWORD not in str(worker.environ())  # nor do runs get it
        killed_in_the_middle(server, stack, client, root)
        backed_up = run(root, "infra.local.backup", "kept", env=env)
        assert backed_up.code == 0, backed_up.text
        refused = run(root, "infra.local.restore", "kept", "--replace", env=env)
        assert "is running; end the platform first: make down" in refused.text
    finally:
        run(root, "infra.local.stack", "down", env=env)
    said = up.text + backed_up.text + "".join(path.read_text() for path in (root / ".platform").glob("*.log"))
    assert PASSWORD not in said
    assert PASSWORD.encode() not in b"".join(path.read_bytes() for path in (root / "kept").glob("*.json"))

    for database in ("prefect", "mlflow"):
        sql(database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    subprocess.run(["git", "-C", str(root), "status"], check=True, capture_output=True)
    import boto3

    bucket = boto3.resource("s3", endpoint_url=s3_endpoint).Bucket("vitrail-test")
    bucket.objects.filter(Prefix=f"{tmp_path.name}/artifacts").delete()
    restored = run(root, "infra.local.restore", "kept", env=env)
    assert restored.code == 0, restored.text

    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_endpoint)
    client = MlflowClient(tracking_uri=postgres.replace("://", "+psycopg2://") + "/mlflow")
    assert [point.value for point in client.get_metric_history(run_id, "loss")] == [0.5]
    assert client.get_model_version("teacher", "1").run_id == run_id
    of_pretrain = "SELECT d.name FROM deployment d JOIN flow f ON d.flow_id = f.id WHERE f.name = 'pretrain'"
    assert ("vitg",) in sql("prefect", of_pretrain)
    [weights] = [one.key for one in bucket.objects.filter(Prefix=f"{tmp_path.name}/artifacts") if "weights" in one.key]
    assert bucket.Object(weights).get()["Body"].read() == b"weights"
