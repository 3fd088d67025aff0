"""Jobs on Slurm and Kubernetes, against stubs of their commands that answer as the real ones do."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from components.errors import VitrailError
from flows.clusters import DONE, RUNNING, WAITING, Kubernetes, Slurm, follow

ROOT = Path(__file__).resolve().parents[2]


def slurm(root: Path) -> Slurm:
    return Slurm(root, "infra/slurm/pretrain.sbatch", 3, {"PRESET": "vitg"}, ("--partition=gpu",))


def test_a_slurm_job_is_followed_to_its_end_through_a_requeue(cluster: Path) -> None:
    job = slurm(cluster)
    lines: list[str] = []

    def take(line: str) -> None:
        if line == "submitted 77":
            (cluster / "job").write_text("PENDING\nRUNNING\nREQUEUED\nPENDING\nRUNNING\nCOMPLETING\nCOMPLETED\n")
        lines.append(line)

    assert follow(job, take, every=0.01) == ""
    asked = (cluster / "asked").read_text().split()
    assert {"--parsable", "--nodes=3", "--partition=gpu", "infra/slurm/pretrain.sbatch"} <= set(asked)
    assert (cluster / "preset").read_text() == "vitg\n"
    assert sum("steps" in line for line in lines) == 2
    assert not (cluster / "cancelled").exists()


@pytest.mark.parametrize(
    ("state", "said"),
    [("FAILED", "77: FAILED, exit code 1:0"), ("OUT_OF_MEMORY", "OUT_OF_MEMORY"), ("TIMEOUT", "TIMEOUT")],
)
def test_a_slurm_job_that_fails_says_how(cluster: Path, state: str, said: str) -> None:
    job = slurm(cluster)
    assert said in follow(job, lambda line: (cluster / "job").write_text(f"{state}\n") and None, every=0.01)


def test_a_slurm_job_that_its_controller_forgot_is_asked_of_accounting(cluster: Path) -> None:
    job = slurm(cluster)
    job.submit()
    (cluster / "forgotten").touch()
    for state, meant in (("COMPLETED", DONE), ("RUNNING", RUNNING), ("PENDING", WAITING)):
        (cluster / "job").write_text(f"{state}\n")
        assert job.state("77") == meant
    (cluster / "job").write_text("CANCELLED by 1000\n")
    assert "CANCELLED" in job.state("77")


def test_a_cancelled_flow_run_leaves_no_slurm_job(cluster: Path) -> None:
    job = slurm(cluster)

    def struck(line: str) -> None:
        (cluster / "job").write_text("RUNNING\n")
        if "steps" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(job, struck, every=0.01)
    assert (cluster / "cancelled").read_text() == "77\n"


def test_the_job_of_a_run_that_was_killed_is_named_and_not_started_twice(cluster: Path) -> None:
    slurm(cluster).submit()  # and nobody follows it
    (cluster / "job").write_text("RUNNING\n")
    with pytest.raises(VitrailError, match=r"job 77 of an earlier run still works .*scancel 77"):
        follow(slurm(cluster), print, every=0.01)
    other = Slurm(cluster, "infra/slurm/pretrain.sbatch", 3, {"PRESET": "vitl"})
    other.refuse_second()
    for ended in ("CANCELLED", "COMPLETED"):
        (cluster / "job").write_text(f"{ended}\n")
        slurm(cluster).refuse_second()
        slurm(cluster).submit()
    (cluster / "job").write_text("RUNNING\n")
    (cluster / "forgotten").touch()  # the controller says nothing of it: it is no longer there
    slurm(cluster).refuse_second()


def test_lines_of_a_slurm_job_come_whole_and_once(cluster: Path) -> None:
    job = slurm(cluster)
    assert job.submit() == "77"
    out = Path((cluster / "out").read_text().strip())
    assert job.lines("77") == []
    out.write_bytes(b"one\ntw")
    assert job.lines("77") == ["one"]
    out.write_bytes(b"one\ntwo\n\xff\n")
    assert job.lines("77") == ["two", "\ufffd"]
    assert job.lines("77") == []


def test_without_the_clusters_commands_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VitrailError, match="sbatch is not installed here"):
        slurm(tmp_path).submit()
    with pytest.raises(VitrailError, match="kubectl is not installed here"):
        Kubernetes(tmp_path, "x", "vitg", 2).submit()


@pytest.fixture
def kubernetes(cluster: Path) -> Kubernetes:
    folder = ROOT / "infra/kubernetes/training"
    contents = [c for c in yaml.safe_load_all((folder / "pretrain.yaml").read_text()) if c]
    for content in contents:
        content["metadata"]["namespace"] = yaml.safe_load((folder / "kustomization.yaml").read_text())["namespace"]
    (cluster / "manifests").write_text(yaml.safe_dump_all(contents))
    return Kubernetes(cluster, "infra/kubernetes/training", "vitl_518", 5)


def test_a_kubernetes_job_is_of_the_preset_and_nodes_asked_for(cluster: Path, kubernetes: Kubernetes) -> None:
    import kubernetes_validate

    assert kubernetes.submit() == "vitrail/vitrail-vitl-518"
    service, job = json.loads((cluster / "applied").read_text())["items"]
    for content in (service, job):
        kubernetes_validate.validate(content, "1.33", strict=True)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 5
    words = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--nnodes=5", "params/pretrain/vitl_518.yaml", "data/pretrain/vitl_518", "reports/pretrain-vitl_518.json",
            "--rdzv-endpoint=vitrail-vitl-518-0.vitrail-vitl-518:29500"} <= set(words)  # fmt: skip
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"] == "vitrail-vitl-518"
    assert service["spec"]["selector"] == {"job-name": "vitrail-vitl-518"}
    assert "vitg" not in json.dumps([service, job])
    assert job["spec"]["template"]["spec"]["containers"][0]["workingDir"] == "/vitrail"
    kubernetes.below = "runs/pretrain-vitl_518"  # the checkout of one run
    [_, job] = kubernetes.manifests()
    assert job["spec"]["template"]["spec"]["containers"][0]["workingDir"] == "/vitrail/runs/pretrain-vitl_518"


def test_a_kubernetes_job_is_followed_cancelled_and_not_started_twice(cluster: Path, kubernetes: Kubernetes) -> None:
    done = '{"status": {"conditions": [{"type": "Complete", "status": "True"}]}}\n'
    lines: list[str] = []

    def take(line: str) -> None:
        if line.startswith("submitted"):
            (cluster / "job").write_text('{"status": {}}\n{"status": {"ready": 5}}\n' + done)
            (cluster / "log").write_text("2026-01-01T00:00:01Z one\n2026-01-01T00:00:02Z two\n")
        lines.append(line)

    assert follow(kubernetes, take, every=0.01) == ""
    assert lines[1:] == ["one", "two"]
    assert follow(kubernetes, take, every=0.01) == ""  # the one that has ended makes room
    assert "delete job vitrail-vitl-518" in (cluster / "deleted").read_text()
    (cluster / "job").write_text('{"status": {"ready": 5}}\n')
    with pytest.raises(VitrailError, match=r"of an earlier run still works.*delete job vitrail-vitl-518"):
        follow(kubernetes, take, every=0.01)
    (cluster / "job").unlink()

    def struck(line: str) -> None:
        time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(kubernetes, struck, every=0.01)
    assert not (cluster / "job").exists()
    failed = '{"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}}\n'
    said = follow(kubernetes, lambda _: (cluster / "job").write_text(failed) and None, every=0.01)
    assert said == "vitrail/vitrail-vitl-518: BackoffLimitExceeded"
