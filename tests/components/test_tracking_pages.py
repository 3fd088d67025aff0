"""MLflow's pages open on model training, with the charts and models of this experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from components import tracking
from components.tracking import TrackingParams
from components.tracking.pages import charts_page, look_at, note, run_page
from components.tracking.store import existing_experiment, open_client, open_experiment
from flows.artifacts import tracking_link


def test_the_pages_of_a_store_name_its_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri, server = f"sqlite:///{tmp_path}/mlflow.db", "http://127.0.0.1:5000"
    assert look_at(server, uri, "vitrail") == [f"{server}/#/experiments?workflowType=machine_learning"]
    assert not (tmp_path / "mlflow.db").exists()  # asking makes no store
    client = open_client(uri)
    made = client.create_experiment("vitrail", artifact_location=str(tmp_path / "artifacts"))  # by another program
    charts, models = look_at(server, uri, "vitrail")
    assert charts.startswith(f"{server}/#/experiments/{made}/runs?workflowType=machine_learning&compareRunsMode=CHART ")
    assert models.startswith(f"{server}/#/experiments/{made}/models?workflowType=machine_learning ")
    assert open_experiment(client, uri, "vitrail") == made == existing_experiment(client, "vitrail")
    assert client.get_experiment(made).tags["mlflow.experimentKind"] == "custom_model_development"
    params = TrackingParams(uri=uri, experiment="vitrail", spool=tmp_path / "spool", system_metrics=False)
    with tracking.run("pretrain", "vitt", params, {}):
        pass
    (run,) = client.search_runs([made])
    assert run.data.tags["mlflow.note.content"] == note("pretrain")["mlflow.note.content"]
    assert "train/loss" in run.data.tags["mlflow.note.content"]


def test_a_server_that_is_away_leaves_the_link_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    away = "http://127.0.0.1:9"
    assert look_at(away, away, "vitrail") == [f"{away}/#/experiments?workflowType=machine_learning"]
    assert "no answer" in capsys.readouterr().err


def test_a_flow_finds_the_link_of_a_run_whole() -> None:
    page = run_page("http://127.0.0.1:5000/", "1", "a0")
    assert page == "http://127.0.0.1:5000/#/experiments/1/runs/a0?workflowType=machine_learning"
    assert tracking_link([f"tracking: {page}", f"see {charts_page('http://127.0.0.1:5000', '1')}"]) == page
    assert tracking_link([f"({page})."]) == page
