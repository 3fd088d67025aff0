"""The doctor: each fault is found and comes with what to do; a sound checkout has none."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from components.doctor import machine, run, workspace
from components.doctor.finding import CheckResult
from components.lock import hold

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "params", tmp_path / "params")
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def bad(findings: list[CheckResult]) -> str:
    found = [finding for finding in findings if finding.level == "bad"]
    assert all(finding.do for finding in found), "a fault without a remedy"
    return " ".join(map(str, found))


def test_a_fresh_checkout_has_nothing_to_mend_in_its_parameters(checkout: Path) -> None:
    assert bad([*workspace.parameters(checkout), *workspace.store(checkout), *workspace.locks(checkout)]) == ""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("source: params/site/demo.yaml", "source: /no/photos", "no such file or folder\n      -> vitrail init"),
        ("  - vitt", "  - vitt\n  - vitz", "there is no params/pretrain/vitz.yaml"),
        ("teacher: vitt", "teacher: vits", "the teacher vits of vitxt is not under `pretrain`"),
        ("pretrain:", "pretrian:", "pretrian"),
    ],
)  # fmt: skip
def test_a_wrong_pipeline_is_named(checkout: Path, old: str, new: str, words: str) -> None:
    edit(checkout / "params/pipeline.yaml", old, new)
    assert words in bad(list(workspace.parameters(checkout)))


def test_s3_that_does_not_answer_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    edit(checkout / "params/storage.yaml", "root: data", "root: s3://bucket/x")
    edit(checkout / "params/storage.yaml", "endpoint_url: null", f"endpoint_url: http://127.0.0.1:{free_port()}")
    said = bad(list(workspace.store(checkout)))
    assert "cannot reach S3" in said
    assert "-> check root and endpoint_url in params/storage.yaml" in said


def test_servers_that_run_are_told_from_others_on_their_ports(checkout: Path) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else 404)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    edit(checkout / "params/platform.yaml", "prefect_port: 4200", f"prefect_port: {port}")
    edit(checkout / "params/platform.yaml", "mlflow_port: 5000", f"mlflow_port: {port}")
    (checkout / "scratch/tracking/run").mkdir(parents=True)
    try:
        prefect, mlflow, waiting = workspace.servers(checkout)
    finally:
        server.shutdown()
        server.server_close()
    assert prefect.level == "ok"
    assert (mlflow.level, "404" in mlflow.found) == ("bad", True)
    assert waiting.do == "vitrail sync"
    edit(checkout / "params/platform.yaml", f"mlflow_port: {port}", f"mlflow_port: {free_port()}")
    edit(checkout / "params/platform.yaml", f"prefect_port: {port}", f"prefect_port: {free_port()}")
    assert [finding.level for finding in workspace.servers(checkout)] == ["note", "note", "note"]


@pytest.mark.parametrize(
    ("code", "out", "err", "level", "words"),
    [
        (0, json.dumps({"inputs": ["always changed"]}), "", "ok", "every stage is up to date"),
        (0, json.dumps({"inputs": [], "curate": [1]}), "", "note", "not up to date: curate"),
        (255, "", "ERROR: Unable to acquire lock.", "note", "vitrail status"),
        (255, "", "ERROR: 'dvc.yaml' is invalid", "bad", "'dvc.yaml' is invalid"),
        (1, "", "", "bad", "code 1"),
    ],
)
def test_dvc_is_read(code: int, out: str, err: str, level: str, words: str) -> None:
    found = workspace.dvc_finding(code, out, err)
    assert found.level == level
    assert words in str(found)


def test_a_folder_that_is_no_checkout_is_told(checkout: Path) -> None:
    assert "no .dvc here" in bad(list(workspace.dvc(checkout)))


def test_a_run_at_work_is_a_note(checkout: Path) -> None:
    with hold(checkout / "data/curate"):
        [found] = workspace.locks(checkout)
    assert found.level == "note"
    assert "data/curate is in use by process" in found.found


def test_this_environment_is_that_of_the_lock(checkout: Path) -> None:
    assert [finding.level for finding in machine.packages(checkout)] == ["ok"]
    edit(checkout / "pyproject.toml", '    "ada-url",', '    "no-such-package-here",\n    "ada-url",')
    assert "not installed: no-such-package-here" in bad(list(machine.packages(checkout)))


def test_a_python_that_does_not_fit_is_told(checkout: Path) -> None:
    assert [finding.level for finding in machine.python(checkout)] == ["ok"]
    edit(checkout / "pyproject.toml", ">=3.11,<3.14", ">=3.20,<3.23")
    assert "install CPython 3.20 to 3.22" in bad(list(machine.python(checkout)))


def test_gpus_are_those_of_nvidia_smi(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(code: int, out: str) -> None:
        done = subprocess.CompletedProcess([], code, out, "")
        monkeypatch.setattr(machine.subprocess, "run", lambda *words, **more: done)

    said(0, "NVIDIA H100, 81559 MiB, 550.1\n")
    monkeypatch.setattr(machine, "torch_build", lambda: "cpu")
    assert "a build without CUDA" in bad(list(machine.gpu(checkout)))
    monkeypatch.setattr(machine, "torch_build", lambda: "13.0")
    assert bad(list(machine.gpu(checkout))) == ""
    said(9, "NVIDIA-SMI has failed")
    assert "mend the driver" in bad(list(machine.gpu(checkout)))


def test_a_full_disk_and_a_wrong_clock_are_told(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bad([*machine.disk(checkout), *machine.clock(checkout)]) == ""
    monkeypatch.setattr(machine, "_LEAST_DISK", 1 << 62)
    assert "dvc gc --workspace" in bad(list(machine.disk(checkout)))
    now = machine.time.time()
    monkeypatch.setattr(machine.time, "time", lambda: now + 3600)
    assert "NTP" in bad(list(machine.clock(checkout)))


def test_torch_is_not_imported_to_learn_its_build() -> None:
    code = "import sys; from components.doctor.machine import torch_build; print(torch_build(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"
    assert done.stdout.split()[0] != "none"


def test_the_exit_code_says_whether_something_is_bad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for level, code in (("note", 0), ("bad", 1)):
        found = CheckResult(level, "disk", "full", "free some")  # type: ignore[arg-type]
        monkeypatch.setattr(run, "CHECKS", (lambda root, found=found: iter([found]),))
        assert run.main([]) == code
        assert "-> free some" in capsys.readouterr().out
