"""Flow runs against Prefect's own API: their states, their messages and the artifacts they leave."""

from __future__ import annotations

import contextvars
import json
import os
import shutil
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from patience import PATIENCE

from flows import limits

ROOT = Path(__file__).resolve().parents[2]
ROW = {"benchmark": "cells", "task": "type", "protocol": "quick v1 (pppppppp)", "kind": "checkpoint"}
# In DVC's place: says what it would run, and how far it is.
DVC = "import sys\nprint('Running stage', sys.argv[-1])\nprint(f'{sys.argv[-1]}: 3/4 images, 5/s')\n"


def score(model: str, accuracy: float) -> dict[str, Any]:
    return ROW | {"model": model, "method": "knn20", "accuracy": accuracy, "low": accuracy - 2, "high": accuracy + 2}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the benchmark stage leaves: 90 % of one checkpoint, 60 % of another, and an error in metres."""
    (tmp_path / "components").symlink_to(ROOT / "components")
    (tmp_path / "dvc.py").write_text(DVC)
    for name in ("params", "reports", "data/benchmark"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("platform", "pipeline"):
        text = (ROOT / f"params/{name}.yaml").read_text()  # DVC and git are not what these tests are about
        (tmp_path / f"params/{name}.yaml").write_text(text.replace("own_checkout: true", "own_checkout: false"))
    error = ROW | {"model": "pretrain vitt", "task": "depth", "method": "lin4_rmse", "value": 0.4, "low": 0.3}
    content = {
        "protocol": {"name": "quick", "version": 1, "digest": "p" * 64},
        "benchmarks": {"cells": {"digest": "d" * 64}},
        "scores": [score("pretrain vitt", 90.0), score("distill vitxt", 60.0)],
        "dense": [error | {"high": 0.5, "unit": "m", "lower_is_better": True}],
    }
    (tmp_path / "data/benchmark/scores.json").write_text(json.dumps(content))
    (tmp_path / "data/benchmark/table.md").write_text("| model |")
    pq.write_table(pa.table({"benchmark": pa.array([], pa.string())}), tmp_path / "data/benchmark/outcomes.parquet")
    (tmp_path / "reports/benchmark.json").write_text(json.dumps({"pretrain vitt": {"knn20": 90.0, "many": [1]}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(workspace: Path, *bounds: dict[str, Any]) -> None:
    rows = [{"benchmark": "cells", "task": "type", "method": "knn20"} | bound for bound in bounds]
    (workspace / "params/gate.yaml").write_text(yaml.safe_dump({"rows": rows}))


def held(kind: str) -> Any:
    """What Prefect's API holds of the benchmark's artifact of that kind; tables are JSON there."""
    from prefect.artifacts import Artifact

    found = Artifact.get(f"benchmark-{kind}")
    assert found is not None, kind
    return json.loads(found.data) if isinstance(found.data, str) and found.data.startswith("[") else found.data


@pytest.mark.e2e
def test_the_benchmark_fails_with_the_rows_that_fall_short_and_leaves_its_scores_as_a_table(
    workspace: Path, prefect_api: None
) -> None:
    from flows.benchmark import benchmark

    ask(workspace, {"at_least": 80.0}, {"model": "pretrain vitt", "at_least": 95.0})
    state = benchmark(return_state=True)
    assert state.is_failed()
    assert state.message == (
        "gate: error: params/gate.yaml: distill vitxt, cells/type/knn20: 60.0, at least 80 is asked for; "
        "pretrain vitt, cells/type/knn20: 90.0, at least 95 is asked for"
    )
    assert [(one["model"], one["method"], one["value"], one["low"], one["unit"]) for one in held("scores")] == [
        ("pretrain vitt", "knn20", 90.0, 88.0, "%"),
        ("distill vitxt", "knn20", 60.0, 58.0, "%"),
        ("pretrain vitt", "lin4_rmse", 0.4, 0.3, "m"),
    ]
    assert held("metrics") == [
        {"metric": "pretrain vitt.knn20", "value": 90.0},
        {"metric": "pretrain vitt.many", "value": [1]},
    ]
    assert held("table") == "| model |"
    assert float(held("progress")) == 100.0

    ask(workspace, {"at_least": 80.0})  # of the preset asked for alone
    state = benchmark("vitt", return_state=True)
    assert (state.is_completed(), state.message) == (True, "up to date: benchmark")
    assert {one["model"] for one in held("scores")} == {"pretrain vitt"}
    state = benchmark("vitq", return_state=True)
    assert state.is_failed()
    assert "reproduces no preset 'vitq'" in state.message


@pytest.mark.e2e
def test_a_preset_is_trained_on_a_cluster_and_the_run_says_how_it_failed(
    cluster: Path, prefect_api: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.pretrain import pretrain

    monkeypatch.setenv("PATH", f"{cluster}/tools:{os.environ['PATH']}:{Path(sys.executable).parent}")
    shutil.copytree(ROOT / "params", cluster / "params")
    platform = cluster / "params/platform.yaml"
    platform.write_text(platform.read_text().replace("own_checkout: true", "own_checkout: false"))

    sbatch = (cluster / "tools/sbatch").read_text()

    def ends(state: str, line: str) -> None:
        """The next job prints ``line`` and ends at once."""
        more = f"echo '{line}' > \"$(cat $STATE/out)\"\necho {state} > $STATE/job\n"
        (cluster / "tools/sbatch").write_text(f"{sbatch}\n{more}")

    ends("FAILED", "error: rank 0: params/pretrain/vits.yaml needs a GPU")
    monkeypatch.chdir(cluster)
    state = pretrain("vits", cluster="slurm", nodes=2, return_state=True)
    assert state.is_failed()
    assert state.message == (
        "pretrain@vits: 77: FAILED, exit code 1:0; error: rank 0: params/pretrain/vits.yaml needs a GPU"
    )
    ends("COMPLETED", "pretrain: 9/9 steps")
    state = pretrain("vits", cluster="slurm", nodes=2, return_state=True)
    assert (state.is_completed(), state.message) == (True, "pretrain@vits: done")
    assert pretrain("vitz", cluster="slurm", return_state=True).message.startswith("error: params/pretrain/vitz.yaml")


def test_runs_of_one_workspace_work_one_after_the_other(prefect_api: None, tmp_path: Path) -> None:
    spans: list[tuple[float, float]] = []

    def work() -> None:
        with limits.held("crawl", tmp_path):
            began = time.monotonic()
            time.sleep(0.2)
            spans.append((began, time.monotonic()))

    runs = [threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(PATIENCE)
    assert len(spans) == 2
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(sorted(spans)))


def test_a_run_that_fails_gives_its_workspace_to_the_next_try(prefect_api: None, tmp_path: Path) -> None:
    with pytest.raises(KeyError), limits.held("crawl", tmp_path):
        raise KeyError
    with limits.held("crawl", tmp_path):  # at once: nobody has to wait for the lease of the one that failed
        pass
