"""The platform on a real PostgreSQL with artifacts on S3: up, backed up while it runs, wiped, and brought back."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from chain_helpers import copy_checkout, edit, run, stage_env

from flows.settings import load_platform
from infra.local.stack import Stack

pytestmark = pytest.mark.e2e
PASSWORD = "planted-password-of-postgres"


def binaries() -> Path | None:
    """Where PostgreSQL's programs are; None where there is no server."""
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    folders += [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@pytest.fixture(scope="module")
def postgres(free_port: Callable[[], int]) -> Iterator[str]:
    """A PostgreSQL server of its own on loopback; ``postgresql://user:password@host:port``."""
    tools = binaries()
    if tools is None:
        pytest.skip("left out: no PostgreSQL here (apt-get install postgresql)")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="vitrail-postgres-"))
    port = free_port()
    (folder / "password").write_text(PASSWORD)
    if user:
        shutil.chown(folder, user)
        shutil.chown(folder / "password", user)
    how = ["--auth=scram-sha-256", f"--pwfile={folder}/password", "--username=vitrail", "--no-sync"]
    make = [tools / "initdb", "-D", folder / "data", *how]
    subprocess.run(make, user=user, check=True, capture_output=True, cwd="/")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    control = [tools / "pg_ctl", "-D", folder / "data", "-w"]
    subprocess.run([*control, "-l", folder / "log", "-o", options, "start"], user=user, check=True, cwd="/")
    try:
        yield f"postgresql://vitrail:{PASSWORD}@127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], user=user, check=True, cwd="/")
        shutil.rmtree(folder)


def test_runs_models_and_deployments_come_back(
    postgres: str, s3_endpoint: str, tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg2
    from mlflow import MlflowClient

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
        client.create_registered_model("teacher")
        client.create_model_version("teacher", f"runs:/{run_id}/model", run_id)
        for process in psutil.process_iter(["cmdline"]):  # nobody reads the password off a process list
            assert PASSWORD not in " ".join(process.info["cmdline"] or [])
        worker = stack.services["worker"].process()
        assert worker is not None
        assert PASSWORD not in str(worker.environ())  # nor do runs get it
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
