"""Runs and models recorded in a real MLflow store, and what is said when there is none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import PATIENCE

from components import tracking
from components.errors import VitrailError
from components.params import load_params, parse_params
from components.tracking import TrackingParams
from components.tracking.pages import MODE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def params(folder: Path) -> TrackingParams:
    own = {"uri": f"sqlite:///{folder}/mlflow.db", "spool": folder / "spool"}
    return TrackingParams(experiment="vitrail", system_metrics=False, **own)


def stored(run: tracking.Run, handle: str | None) -> str | None:
    """The model's id once all that was recorded before is in the store."""
    sender: Any = run
    assert sender._sender.caught_up(60)
    return run.stored(handle)


@pytest.fixture(scope="module")
def client(params: TrackingParams) -> Any:
    """A plain MLflow client on the same store, as a user's notebook has it."""
    with tracking.run("test", "first", params, {}):
        pass
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=params.uri)


def test_the_shipped_parameters_load() -> None:
    assert load_params(ROOT / "params/tracking.yaml", TrackingParams).experiment == "vitrail"
    with pytest.raises(VitrailError, match="sqlite:///FILE"):
        parse_params({"uri": "./mlruns", "experiment": "x"}, TrackingParams, "here")


def test_a_run_records_what_it_is_given(
    params: TrackingParams, client: Any, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRAIL_FLOW_RUN_ID", "flow-1")
    (in_tmp / "dvc.lock").write_text("schema: '2.0'\n")
    (in_tmp / "docs").mkdir()
    (in_tmp / "docs/index.html").write_text("<p>docs")
    with tracking.run("pretrain", "pretrain vitt", params, {"optimizer": {"lr": 1e-3, "betas": [0.9, 0.99]}}) as run:
        for step in range(5):
            run.log_metrics({"loss/total": 5.0 - step, "loss/koleo": float("nan")}, step=step)
        run.log_image(np.zeros((8, 8, 3), np.uint8), "pca/cell")
        run.log_artifacts(in_tmp / "docs", "quality/index")
        run.log_artifacts(in_tmp / "docs/index.html")
        run.log_dataset("manifest", "ab" * 32, "data/dedup/manifest", "training")
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "pretrain vitt"
    assert found.data.params == {"optimizer.lr": "0.001", "optimizer.betas": "[0.9, 0.99]"}
    curve = client.get_metric_history(run.id, "loss/total")
    assert sorted((point.step, point.value) for point in curve) == [(i, 5.0 - i) for i in range(5)]
    assert found.data.tags["prefect.flow_run_id"] == "flow-1"
    assert found.data.tags["vitrail.stage"] == "pretrain"
    assert len(found.data.tags["dvc.lock.md5"]) == 32
    assert {a.path for a in client.list_artifacts(run.id)} == {"images", "index.html", "quality"}
    assert [a.path for a in client.list_artifacts(run.id, "quality/index")] == ["quality/index/index.html"]
    assert any(a.path.endswith(".png") for a in client.list_artifacts(run.id, "images"))
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("manifest", ("ab" * 32)[:36])
    assert json.loads(dataset.dataset.source) == {"uri": "data/dedup/manifest"}


def test_the_commit_is_a_tag(params: TrackingParams, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    with tracking.run("test", "tagged", params, {}, tags={"more": "1"}) as run:
        pass
    tags = client.get_run(run.id).data.tags
    assert tags.get("mlflow.source.git.commit") == (head.stdout.strip() or None)
    assert tags["more"] == "1"


def test_artifacts_of_a_sqlite_store_stand_beside_it(params: TrackingParams, client: Any, folder: Path) -> None:
    experiment = client.get_experiment_by_name("vitrail")
    assert Path(experiment.artifact_location) == folder / "mlartifacts/vitrail"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_an_experiment_made_by_a_server_takes_artifacts_without_it(
    params: TrackingParams, client: Any, folder: Path, in_tmp: Path
) -> None:
    client.create_experiment("served", artifact_location="mlflow-artifacts:/7")
    (in_tmp / "note.txt").write_text("x")
    with tracking.run("test", "t", params.model_copy(update={"experiment": "served"}), {}) as run:
        run.log_artifacts(in_tmp / "note.txt", "notes")
    assert (folder / f"mlartifacts/7/{run.id}/artifacts/notes/note.txt").read_text() == "x"


def test_a_failing_run_says_why(params: TrackingParams, client: Any) -> None:
    with pytest.raises(VitrailError), tracking.run("test", "t", params, {}) as run:
        raise VitrailError("the disk is full")
    found = client.get_run(run.id)
    assert (found.info.status, found.data.tags["vitrail.error"]) == ("FAILED", "the disk is full")
    with pytest.raises(KeyboardInterrupt), tracking.run("test", "t", params, {}) as run:
        raise KeyboardInterrupt
    assert client.get_run(run.id).info.status == "KILLED"


def test_sigterm_ends_the_run_as_killed(params: TrackingParams, client: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), tracking.run("test", "t", params, {}) as run:
        signal.raise_signal(signal.SIGTERM)
    assert client.get_run(run.id).info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_can_be_continued(params: TrackingParams, client: Any) -> None:
    with contextlib.suppress(VitrailError), tracking.run("test", "t", params, {"a": 1}, {"host": "a"}) as run:
        run.log_metrics({"x": 1.0}, step=0)
        model = run.stored(run.log_checkpoint("t-step1", {"depth": 4}, step=1), 60)
        assert model is not None
        raise VitrailError("a node was lost")
    with tracking.run("test", "t", params, {"a": 1}, {"host": "b"}, run_id=run.id) as again:
        again.log_metrics({"x": 2.0}, step=1)
        same = again.log_checkpoint("t-step1", {"depth": 4}, step=1)  # the same step, reached again
        assert again.stored(same, 60) == model
        assert again.stored(again.log_checkpoint("t-step1", {"depth": 5}, step=1), 60) not in (None, model)
    with tracking.run("test", "t", params, {"a": 1}) as fresh:
        assert fresh.stored(fresh.log_checkpoint("t-step1", {"depth": 4}, step=1), 60) not in (None, model)
    assert again.id == run.id
    tags = client.get_run(run.id).data.tags
    assert tags["host"] == "b"
    assert "vitrail.error" not in tags
    assert [point.step for point in client.get_metric_history(run.id, "x")] == [0, 1]
    with tracking.run("test", "t", params, {}, run_id="0" * 32) as other:  # of another store
        assert other.id not in ("0" * 32, run.id)


def test_checkpoints_are_models_that_can_be_compared(params: TrackingParams, client: Any) -> None:
    with tracking.run("pretrain", "t", params, {}) as run:
        first = run.log_checkpoint("vit/t: 1", {"vit": {"depth": 4}}, step=100, tags={"kind": "pretrain"})
        second = run.log_checkpoint("vitt", {}, step=200, metrics={"elpv/type/knn20": 0.9}, dataset=("elpv", "d" * 64))
        second = run.stored(second, 60)
    with tracking.run("benchmark", "b", params, {}) as run:
        run.log_scores(first, {"elpv/type/knn20": 0.8}, ("elpv", "d" * 64))
        assert run.ensure_model(first, "anything", {}) == first
        raw = run.ensure_model(None, "raw pixels", {"side": 32}, {"kind": "raw"})
        gone = run.ensure_model("m-" + "0" * 32, "elsewhere", {"side": 32})
        first, raw_id, gone = (run.stored(one, 60) for one in (first, raw, gone))
        assert None not in (first, second, raw_id, gone)
        assert len({first, second, raw_id, gone}) == 4
        run.log_scores(raw, {"elpv/type/knn20": 0.7}, ("elpv", "d" * 64))
    with tracking.run("benchmark", "b", params, {}) as run:
        assert run.stored(run.ensure_model(None, "raw pixels", {"side": 32}), 60) == raw_id
        assert run.stored(run.ensure_model(None, "raw pixels", {"side": 64}), 60) not in (None, raw_id)
        run.log_scores(raw, {"elpv/type/knn20": 0.7}, ("elpv", "d" * 64))  # a handle of an earlier run
    model = client.get_logged_model(first)
    assert (model.name, str(model.status), model.params) == ("vit-t- 1", "READY", {"vit.depth": "4", "step": "100"})
    experiment = client.get_experiment_by_name("vitrail").experiment_id
    ranked = client.search_logged_models(
        [experiment],
        filter_string="metrics.`elpv/type/knn20` > 0",
        order_by=[{"field_name": "metrics.elpv/type/knn20", "ascending": False}],
    )
    assert [m.model_id for m in ranked] == [second, first, raw_id]
    for model in ranked:
        (metric,) = model.metrics
        assert (metric.dataset_name, metric.dataset_digest) == ("elpv", "d" * 36)


def test_scores_measured_anew_are_a_new_row(params: TrackingParams, client: Any) -> None:
    digest = ("elpv", "e" * 64)
    with tracking.run("benchmark", "b", params, {}) as run:
        handle = run.ensure_model(None, "again", {"side": 1}, {"kind": "raw"})
        first = run.stored(handle, 60)
        run.log_scores(handle, {"a": 1.0, "b": 2.0}, digest)
        run.log_scores(handle, {"a": 1.0, "c": 3.0}, digest)  # nothing new about a
        assert run.stored(run.log_scores(handle, {"a": 9.0}, ("other", "f" * 64)), 60) == first
        second = stored(run, run.log_scores(first, {"a": 1.5, "b": 2.0}, digest))
        assert second not in (None, first)
        again = run.ensure_model(None, "again", {"side": 1})
        assert stored(run, run.log_scores(again, {"a": 1.5}, digest)) == second
        third = stored(run, run.log_scores(first, {"a": 1.75}, digest))
    model = client.get_logged_model(second)
    assert (model.name, model.params) == ("again", {"side": "1"})
    assert (model.tags["vitrail.supersedes"], model.tags["vitrail.superseded_by"]) == (first, third)
    assert model.tags["kind"] == "raw"
    assert sorted((m.key, m.value) for m in model.metrics) == [("a", 1.5), ("b", 2.0)]
    assert sorted(m.key for m in client.get_logged_model(first).metrics) == ["a", "a", "b", "c"]


def test_the_null_run_takes_everything() -> None:
    with tracking.null_run() as run:
        run.log_metrics({"x": 1.0}, step=1)
        run.log_scores(run.log_checkpoint("m", {}), {"x": 1.0}, ("d", "e"))
        assert run.ensure_model("m-1", "m", {}) == "m-1"


def test_system_metrics_arrive(params: TrackingParams, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with tracking.run("test", "t", params.model_copy(update={"system_metrics": True}), {}) as run:
        time.sleep(1.0)
    assert "system/cpu_utilization_percentage" in client.get_run(run.id).data.metrics


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_server_that_is_required_and_not_there_is_named_within_seconds(
    silent_port: int, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for uri in (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{silent_port}"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # goes before the params
        start = time.monotonic()
        with (
            pytest.raises(VitrailError, match=f"MLflow at {uri}: no answer"),
            tracking.run("test", "t", TrackingParams(uri="sqlite:///x.db", experiment="x", required=True), {}),
        ):
            pass
        assert time.monotonic() - start < 90
        assert not list((in_tmp / "scratch/tracking").glob("*/records*"))


def test_a_store_that_cannot_be_written_is_named(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (in_tmp / "file").write_text("")
    with (
        pytest.raises(VitrailError, match="cannot write there"),
        tracking.run("test", "t", TrackingParams(uri="sqlite:///file/mlflow.db", experiment="x"), {}),
    ):
        pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with (
        pytest.raises(VitrailError, match=r"MLFLOW_TRACKING_URI=\./mlruns"),
        tracking.run("test", "t", TrackingParams(uri="sqlite:///x.db", experiment="x"), {}),
    ):
        pass


@pytest.mark.e2e
def test_processes_may_create_the_store_at_the_same_time(tmp_path: Path) -> None:
    script = (
        "from components import tracking\n"
        "params = tracking.TrackingParams(uri='sqlite:///mlflow.db', experiment='e', system_metrics=False)\n"
        "with tracking.run('t', 't', params, {'a': 1}) as run: run.log_metrics({'x': 1.0})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment) for _ in range(3)]
    assert [process.wait(PATIENCE) for process in started] == [0, 0, 0]
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("e").experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["FINISHED"] * 3


@pytest.fixture(scope="module")
def server(folder: Path, client: Any) -> Iterator[str]:
    """``mlflow server`` on the store that the tests above wrote without it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/mlartifacts"]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--workers", "1"],
        cwd=folder,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seven processes for language models
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a group of its own: the server's workers end with it
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def served(url: str, run: str, path: str) -> bytes:
    with urllib.request.urlopen(f"{url}/get-artifact?path={path}&run_uuid={run}", timeout=PATIENCE) as answer:
        found: bytes = answer.read()
    return found


@pytest.mark.e2e
def test_a_server_shows_what_was_recorded_without_it_and_the_other_way_round(
    params: TrackingParams, client: Any, server: str, in_tmp: Path
) -> None:
    (in_tmp / "note.txt").write_text("hello")
    with tracking.run("test", "direct", params, {}) as run:
        run.log_artifacts(in_tmp / "note.txt", "notes")
    assert served(server, run.id, "notes/note.txt") == b"hello"
    with tracking.run("test", "over http", params.model_copy(update={"uri": server}), {"a": 1}) as run:
        assert run.url == f"{server}/#/experiments/{client.get_run(run.id).info.experiment_id}/runs/{run.id}?{MODE}"
        run.log_artifacts(in_tmp / "note.txt", "notes")
        run.log_image(np.zeros((8, 8, 3), np.uint8), "black")
        model = stored(run, run.log_scores(run.ensure_model(None, "m", {}), {"x": 1.0}, ("d", "e" * 64)))
    assert served(server, run.id, "notes/note.txt") == b"hello"
    assert client.get_logged_model(model).metrics[0].value == 1.0
    own = {"uri": server, "experiment": "made by the server"}
    with tracking.run("test", "t", params.model_copy(update=own), {}) as run:
        run.log_artifacts(in_tmp / "note.txt", "notes")
    assert served(server, run.id, "notes/note.txt") == b"hello"
    with tracking.run("test", "t", params.model_copy(update={"experiment": "made by the server"}), {}) as run:
        run.log_artifacts(in_tmp / "note.txt", "notes")
    assert served(server, run.id, "notes/note.txt") == b"hello"


@pytest.mark.e2e
def test_artifacts_of_another_machine_are_refused(params: TrackingParams, client: Any, server: str) -> None:
    client.create_experiment("elsewhere", artifact_location="/no/such/machine/mlartifacts/elsewhere")
    changes = {"uri": server, "experiment": "elsewhere"}
    with (
        pytest.raises(VitrailError, match="not on this machine"),
        tracking.run("test", "t", params.model_copy(update=changes), {}),
    ):
        pass
