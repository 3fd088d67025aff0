"""The stack's settings and the demo's output, without servers."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from components.errors import VitrailError
from flows.settings import load_platform
from infra.local import demo
from infra.local.demo import StageClock, format_report
from infra.local.stack import Stack

ROOT = Path(__file__).resolve().parents[2]


def test_every_process_gets_the_urls_and_no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    params = load_platform(ROOT)
    env = Stack(ROOT, params).environment()
    assert env["PREFECT_API_URL"] == params.prefect_api
    assert env["PREFECT_HOME"] == str(ROOT / ".prefect")
    assert env["VITRAIL_ROOT"] == str(ROOT)
    assert env["MLFLOW_TRACKING_URI"] == params.mlflow_url
    assert env["DO_NOT_TRACK"] == "1"
    assert (Path(env["PATH"].split(os.pathsep)[0]) / "python").exists()


def test_a_store_of_the_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert Stack(ROOT, load_platform(ROOT)).environment()["MLFLOW_TRACKING_URI"] == "https://mlflow.example"


def test_the_servers_listen_on_loopback_only() -> None:
    assert load_platform(ROOT).host == "127.0.0.1"


def test_up_stops_at_a_taken_port_before_it_starts_anything(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        params = load_platform(ROOT).model_copy(update={"prefect_port": taken.getsockname()[1]})
        stack = Stack(tmp_path, params)
        with pytest.raises(VitrailError, match=r"set another prefect_port in params/platform\.yaml"):
            stack.up()
    assert all(service.process() is None for service in stack.services.values())


def test_down_without_a_stack_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Stack(tmp_path, load_platform(ROOT)).down()
    assert capsys.readouterr().out.count("was not running") == 3


def test_the_demo_times_stages_and_leaves_out_dvcs_chatter(capsys: pytest.CaptureFixture[str]) -> None:
    clock = StageClock()
    for line in (
        "Stage 'crawl' didn't change, skipping",
        "Running stage 'curate':",
        "> python -m components.curate run",
        "curate: 3/9 shards",
        "Updating lock file 'dvc.lock'",
        "Running stage 'dedup':",
        "error: params/dedup.yaml: unknown key 'x'",
        "ERROR: failed to reproduce 'dedup'",
    ):
        clock.line(line)
    clock.close()
    out = capsys.readouterr().out
    assert clock.skipped == ["crawl"]
    assert list(clock.times) == ["curate", "dedup"]
    assert clock.errors == ["error: params/dedup.yaml: unknown key 'x'", "ERROR: failed to reproduce 'dedup'"]
    assert "   curate: 3/9 shards" in out
    assert "lock file" not in out
    assert "> python" not in out


def test_reports_are_printed_with_every_number() -> None:
    text = format_report({"kept": 12345, "dropped": {"face": 1, "nsfw": 2}, "scores": {"a": {"knn": 0.93456}}, "e": {}})
    assert text.splitlines() == [
        "  kept: 12,345",
        "  dropped: face 1, nsfw 2",
        "  scores:",
        "    a: knn 0.9346",
        "  e: none",
    ]


def test_a_folder_that_is_no_checkout_is_refused_at_once(in_tmp: Path) -> None:
    with pytest.raises(VitrailError, match="not a git checkout"):
        demo.preflight(in_tmp)


def test_a_full_disk_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**8})())
    with pytest.raises(VitrailError, match=r"0\.1 GB free, the demo needs"):
        demo.preflight(ROOT)
