"""MLflow that hangs, dies, is away at the start, or comes back: what a run records is kept and sent later, in order."""

from __future__ import annotations

import contextlib
import json
import os
import re
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

from components import tracking
from components.errors import VitrailError, run_cli
from components.tracking import TrackingParams
from components.tracking.command import main
from components.tracking.names import image_key, metric_name
from components.tracking.spool import Spool, hold, left_behind

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def params(folder: Path, uri: str, **more: Any) -> TrackingParams:
    own = {"uri": uri, "experiment": "e", "system_metrics": False, "spool": folder / "spool", "wait_at_end": 2.0}
    return TrackingParams(**{**own, **more})


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def record(run: tracking.Run, first: int, last: int) -> None:
    for step in range(first, last):
        run.log_metrics({"loss": float(step)}, step=step)
    run.log_image(np.zeros((8, 8, 3), np.uint8), "pca", step=last)
    run.log_scores(run.log_checkpoint("m", {"d": 4}, step=last), {"acc": 0.5}, ("d", "e" * 64), last)


def test_records_come_back_in_their_order_after_any_end_of_their_process(tmp_path: Path) -> None:
    with hold(tmp_path / "one") as held:
        assert held
        spool = Spool(tmp_path / "one", 100_000_000)
        for number in range(100):
            assert spool.append("metrics", number=number, text="ü" * 20_000)  # more than one file
        ends = [position for _, position in spool.pending()]
        spool.sent(ends[59], [])
        assert len(list(tmp_path.glob("one/records-*"))) > 1
    with open(max((tmp_path / "one").glob("records-*")), "ab") as file:
        file.write(b'{"kind": "metr')  # killed within a line
    again = Spool(tmp_path / "one", 100_000_000)
    again.append("metrics", number=100)
    assert [found["number"] for found, _ in again.pending()] == list(range(60, 101))


def test_a_spool_is_bounded_and_counts_what_it_drops(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 200_000)
    for number in range(3000):
        spool.append("metrics", number=number, text="x" * 100)
    assert spool.keep_file("image", "image.png", b"x" * 30_000) is None
    spool.append("end")  # facts still have room
    kept = [found for found, _ in spool.pending()]
    assert kept[-1] == {"kind": "end"}
    assert [found["number"] for found in kept[:-1]] == list(range(len(kept) - 1))
    assert spool.state.dropped == {"metrics": 3000 - len(kept) + 1, "image": 1}
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 200_000


def test_one_process_holds_a_spool_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path\nfrom components.tracking.spool import hold\nimport time\n"
        f"with hold(Path({str(tmp_path / 's')!r})) as held:\n    print(held, flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    with hold(tmp_path / "s") as held:
        assert not held
    process.kill()
    process.wait()
    with hold(tmp_path / "s") as held, hold(tmp_path / "s") as twice:
        assert held
        assert not twice


@pytest.mark.parametrize("name", ["a*b", "größe", "a//b", "../a", "x" * 300, "", "a?b", "日本", "%"])
def test_every_name_becomes_one_that_mlflow_takes_and_different_ones_stay_apart(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(metric_name(name))
    assert re.fullmatch(r"[a-zA-Z0-9_\-./ ]+", image_key(name))
    assert metric_name(name) != metric_name(name + "*")
    assert metric_name("train/loss x") == "train/loss x"


def test_what_mlflow_refuses_is_a_warning_and_the_rest_arrives(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = params(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", wait_at_end=60.0)
    with tracking.run("test", "t", store, {"odd *key?": 1}) as run:
        run.log_metrics({"type/größe?": 1.0, "x": 1.0}, step=1)
        run.log_image(np.zeros((2, 3, 5, 7), np.uint8), "not a picture")  # type: ignore[arg-type]
        run.log_artifacts(tmp_path / "gone")
        run.log_scores("no such model", {"x": 1.0}, ("d", "e"))
        run.log_metrics({"x": 2.0}, step=2)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.uri)
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert [point.value for point in client.get_metric_history(run.id, "x")] == [1.0, 2.0]
    assert found.data.tags["vitrail.not_recorded"] == "1 sets of scores"
    said = capfd.readouterr().err
    for words in ("not a picture", "gone could not be logged", "no model no such model"):
        assert words in said
    assert not left_behind(store.spool)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield server.getsockname()[1]


def test_a_server_that_hangs_or_is_away_at_the_start_costs_one_warning(
    tmp_path: Path, silent_port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    for port in (silent_port, free_port()):
        store = params(tmp_path, f"http://127.0.0.1:{port}")
        with tracking.run("test", "t", store, {}) as run:
            began = time.monotonic()
            record(run, 0, 500)
            assert time.monotonic() - began < 60
            assert (run.id, run.url) == ("", "")
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert [f"MLflow at {store.uri}: no answer" in line for line in said] == [True, False]
        assert "python -m components.tracking sync" in said[1]
    assert len(left_behind(store.spool)) == 2


def test_a_run_that_waits_is_known_to_have_trained_on_its_data(tmp_path: Path) -> None:
    store = params(tmp_path, f"http://127.0.0.1:{free_port()}", wait_at_end=0.0)
    with tracking.run("pretrain", "pretrain t", store, {}, {"data_digest": "ab"}) as run:
        model = run.log_checkpoint("t-step9", {}, step=9)
    local = store.model_copy(update={"uri": f"sqlite:///{tmp_path}/none.db"})
    assert tracking.trained_on(local, ["cd"]) == []
    (found,) = tracking.trained_on(local, ["cd", "ab"])
    assert (found.run_id, found.name, found.status) == (run.key, "pretrain t", "WAITING")
    assert found.models == (f"t-step9 ({model})",)


class Mlflow:
    """A real MLflow server that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        where = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        where += ["--artifacts-destination", f"{self.folder}/mlartifacts", "--host", "127.0.0.1"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *where, "--port", str(self.port)],
            cwd=self.folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for _ in range(480):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError("the server did not start")

    def signal(self, number: int) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)
        if number == signal.SIGKILL and self._process is not None:
            self._process.wait(10)
            self._process = None


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[Mlflow]:
    server = Mlflow(tmp_path)
    yield server
    server.signal(signal.SIGKILL)


def steps_of(client: Any, run: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run, "loss")]


@pytest.mark.e2e
def test_a_server_that_stops_dies_and_comes_back_gets_everything_once_and_in_order(
    mlflow: Mlflow, tmp_path: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    from components.tracking import sender

    monkeypatch.setattr(sender, "RETRY", (0.5, 2.0))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    mlflow.start()
    store = params(tmp_path, mlflow.url, wait_at_end=60.0)
    with tracking.run("test", "t", store, {}) as run:
        assert run.url.startswith(mlflow.url)
        record(run, 0, 100)
        mlflow.signal(signal.SIGSTOP)  # it hangs
        began = time.monotonic()
        record(run, 100, 200)
        mlflow.signal(signal.SIGKILL)  # it dies
        record(run, 200, 300)
        assert time.monotonic() - began < 60
        time.sleep(6)
        mlflow.start()
        record(run, 300, 400)
    client = MlflowClient(tracking_uri=mlflow.url)
    assert client.get_run(run.id).info.status == "FINISHED"
    assert steps_of(client, run.id) == list(range(400))
    pictures = [item.path for item in client.list_artifacts(run.id, "images") if item.path.endswith(".png")]
    assert len(pictures) >= 4
    experiment = client.get_experiment_by_name("e").experiment_id
    models = client.search_logged_models([experiment])
    assert sorted(int(model.params["step"]) for model in models) == [100, 200, 300, 400]
    assert "answers; what waited was sent" in capfd.readouterr().err
    # Away at the end, and at the start of the next run: the next one that reaches it brings all of them.
    mlflow.signal(signal.SIGKILL)
    away = store.model_copy(update={"wait_at_end": 1.0})
    with contextlib.suppress(VitrailError), tracking.run("test", "lost", away, {}) as second:
        record(second, 0, 10)
        raise VitrailError("diverged")
    code = (
        "import os\nfrom components import tracking\nfrom components.params import load_params\n"
        "with tracking.run('test', 'killed', load_params('t.yaml', tracking.TrackingParams), {}) as run:\n"
        "    run.log_metrics({'loss': 1.0}, step=7)\n    os.kill(os.getpid(), 9)\n"
    )
    file = in_tmp / "t.yaml"
    file.write_text(json.dumps(away.model_dump(mode="json")))
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == -9
    assert len(left_behind(store.spool)) == 2
    mlflow.start()
    assert run_cli(main, ["sync", "--tracking", str(file)]) == 0
    assert "records sent" in capfd.readouterr().out
    assert left_behind(store.spool) == []
    runs = {one.info.run_name: one for one in client.search_runs([experiment])}
    assert {name: one.info.status for name, one in runs.items()} == {
        "t": "FINISHED", "lost": "FAILED", "killed": "KILLED"
    }  # fmt: skip
    assert runs["lost"].data.tags["vitrail.error"] == "diverged"
    assert steps_of(client, runs["lost"].info.run_id) == list(range(10))
    assert steps_of(client, runs["killed"].info.run_id) == [7]
