"""What a flow run shows: percentages and links read from a stage's lines, its metrics, and why it failed."""

from __future__ import annotations

import io
import re
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import State, StateType

from components.errors import VitrailError
from components.progress import Progress
from flows import artifacts, launch
from flows.artifacts import ProgressArtifact, artifact_key, flatten, percent_done, tracking_link
from flows.tasks import as_flow_state, failure_message, is_busy, stage_environment


def test_percentages_come_from_the_lines_that_progress_prints() -> None:
    out = io.StringIO()
    progress = Progress("pretrain", 1200, unit="steps", every=0.0, out=out)
    progress.advance(300, "loss 7.1, lr 1/2")
    assert percent_done(out.getvalue()) == 25.0


def test_the_progress_bar_follows_a_stages_lines_and_is_full_only_when_it_ends_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[tuple[object, ...]] = []
    made, now = uuid4(), 1000.0

    def create(progress: float, key: str, description: str) -> UUID:
        sent.append(("create", key, progress, description))
        return made

    def update(artifact_id: UUID, progress: float, description: str) -> None:
        sent.append(("update", artifact_id, progress, description))

    monkeypatch.setattr(artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(artifacts, "update_progress_artifact", update)
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: now)
    bar = ProgressArtifact("pretrain@vitt")
    bar.line("resuming after step 100 from scratch/pretrain/vitt")
    assert sent == []
    bar.line("pretrain vitt: 150/600 steps, 3/s, 2 min 30 s left | loss 7.1")
    now += 1
    bar.line("pretrain vitt: 160/600 steps, 3/s")  # too soon: each is a request to the server
    now += 60
    bar.line("pretrain vitt, high-resolution: 1,200/2,400 steps, 3/s")
    bar.close(done=False)
    expected = [
        ("create", "pretrain-vitt-progress", 25.0, "pretrain vitt: 150/600 steps, 3/s, 2 min 30 s left | loss 7.1"),
        ("update", made, 50.0, "pretrain vitt, high-resolution: 1,200/2,400 steps, 3/s"),
    ]
    assert sent == expected
    bar.close(done=True)
    assert sent == [*expected, ("update", made, 100.0, "pretrain@vitt: done")]
    ProgressArtifact("dedup").close(done=True)  # it never showed a bar
    assert len(sent) == 3


@pytest.mark.parametrize("line", ["", "no count", "read data/3/4.tar", "crawl: 12 pages, 3/s", "x: 1/0 things"])
def test_a_line_without_a_count_gives_no_percentage(line: str) -> None:
    assert percent_done(line) is None


def test_the_link_is_the_last_mlflow_run() -> None:
    url = "http://127.0.0.1:5000/#/experiments/1/runs/"
    assert tracking_link(["a", f"MLflow run: {url}aa11", f"MLflow run: {url}bb22", "b"]) == f"{url}bb22"
    assert tracking_link(["see http://127.0.0.1:5000"]) is None


def test_keys_use_only_the_letters_prefect_allows() -> None:
    assert re.fullmatch(r"[a-z0-9-]+", artifact_key("pretrain@ViT_t"))


def test_the_parts_of_a_path_are_joined_by_dots() -> None:
    assert flatten({"type": {"knn": 0.9, "many": [1]}, "n": 3}) == [("type.knn", 0.9), ("type.many", [1]), ("n", 3)]
    assert flatten({}) == []


def test_the_stages_own_error_line_is_the_message() -> None:
    lines = ["x", "error: params/dedup.yaml: unknown key 'tresh'", "ERROR: failed to reproduce 'dedup'", ""]
    assert failure_message(lines, 255) == lines[1]
    assert failure_message(lines[2:], 255) == lines[2]
    assert failure_message(["Traceback", "ValueError: 3"], 1) == "error: exit code 1; its last line: ValueError: 3"
    assert "signal 9" in failure_message([], -9)


def test_only_a_busy_workspace_is_tried_again() -> None:
    def failed(message: str) -> State:
        return State(type=StateType.FAILED, message=message)

    assert is_busy(None, None, failed("x: ERROR: Unable to acquire lock. Most likely another DVC process is running"))
    assert is_busy(None, None, failed("x: ERROR: '/p' is busy, it is being blocked by:"))
    assert not is_busy(None, None, failed("x: error: the disk is full"))


def test_a_flow_takes_over_the_message_but_not_the_identity_of_its_task() -> None:
    task = State(type=StateType.FAILED, name="Failed", message="dedup: error: x")
    task.state_details.task_run_id = "5b9c8d3e-1f0a-4c57-9d0e-0d2f3d5c1a11"  # type: ignore[assignment]
    own = as_flow_state(task)
    assert (own.type, own.message, own.state_details.task_run_id) == (task.type, task.message, None)


def test_a_fault_of_input_fails_the_run_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise VitrailError("params/pipeline.yaml: unknown key 'pretrian'")

    monkeypatch.setattr(launch, "load_pipeline", faulty)
    state = launch.run_families("curate")
    assert state.is_failed()
    assert state.message == "error: params/pipeline.yaml: unknown key 'pretrian'"


def test_a_stage_finds_this_pythons_tools_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    env = stage_environment(tmp_path)
    first, _, rest = env["PATH"].partition(":")
    assert (Path(first) / "python").exists()
    assert rest == "/usr/bin"
    assert "PYTHONPATH" not in env
    assert env["VITRAIL_FLOW_RUN_ID"] == ""


def test_a_server_that_is_away_costs_the_progress_bar_and_not_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    from flows import artifacts

    asked: list[str] = []

    def away(**given: object) -> None:
        asked.append(str(given["key"]))
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(artifacts, "create_progress_artifact", away)
    bar = artifacts.ProgressArtifact("pretrain@vitt")
    bar.line("pretrain vitt: 120/400 steps, 1.2/s, 3 min left")
    bar.close(done=True)
    assert asked == ["pretrain-vitt-progress"]
