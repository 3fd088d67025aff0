"""The cluster's files: they are well-formed, and the commands inside them are ones that the real parser takes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from patience import PATIENCE

from components.pretrain.run import app

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / "infra/slurm/pretrain.sbatch"
KUBERNETES = ROOT / "infra/kubernetes/training/pretrain.yaml"


def slurm_command() -> list[str]:
    text = SBATCH.read_text().replace("\\\n", " ").replace("$PRESET", "vitg")
    line = next(line for line in text.splitlines() if line.startswith("srun torchrun"))
    return shlex.split(line.removesuffix("&"))


def kubernetes_command() -> list[str]:
    job = list(yaml.safe_load_all(KUBERNETES.read_text()))[1]
    container = job["spec"]["template"]["spec"]["containers"][0]
    return [*container["command"], *container["args"]]


@pytest.mark.parametrize("command", [slurm_command(), kubernetes_command()], ids=["slurm", "kubernetes"])
def test_the_ranks_run_the_stages_own_command(command: list[str]) -> None:
    at = command.index("-m")
    assert command[at + 1] == "components.pretrain"
    function, given, _ = app.parse_args(command[at + 2 :], exit_on_error=False, print_error=False)
    assert function.__name__ == "run"
    assert (ROOT / given.arguments["options"].params).is_file()
    # What dvc.yaml writes, so that `dvc commit` records the cluster's result.
    # dvc.yaml's command leaves preset, output and report to --stage; the launchers spell them out.
    stage = shlex.split(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["pretrain"]["cmd"])
    dvc = [
        "-m",
        "components.pretrain",
        "run",
        "--params",
        "params/pretrain/vitg.yaml",
        *stage[stage.index("--curated") :],
    ]
    dvc += ["--out", "data/pretrain/vitg", "--report", "reports/pretrain-vitg.json"]
    for command in (slurm_command(), kubernetes_command()):
        assert command[command.index("-m") :] == dvc
        assert "--shutdown-timeout=240" in command  # torchrun kills ranks that still write after 30 s otherwise


def test_the_slurm_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)


@pytest.mark.parametrize(("on_term", "requeued"), [(1, True), (0, False)])
def test_the_slurm_script_hands_sigterm_on_and_requeues_what_is_not_finished(
    tmp_path: Path, on_term: int, requeued: bool
) -> None:
    tools = tmp_path / ".venv/bin"
    tools.mkdir(parents=True)
    (tools / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    (tmp_path / "infra/local").mkdir(parents=True)
    (tmp_path / "infra/local/telemetry-off.env").write_text("")
    ranks = f"trap 'sleep 0.3; echo saved > saved; exit {on_term}' TERM\n"
    ranks += "echo $$ > at && mv at started\nwhile :; do sleep 0.1; done\n"
    control = 'case "$1 $2" in "show hostnames") echo node0;;\n"show job") [ -e busy ] || { touch busy; exit 1; }\n'
    control += 'echo "JobId=7 JobState=RUNNING Reason=None";;\n'  # a controller that does not answer at first
    control += '*) echo "$@" > asked; kill -TERM $PPID;; esac\n'  # Slurm ends the script of a job that it queues again
    for name, body in (("srun", ranks), ("scontrol", control), ("scancel", "kill -TERM $(cat started)\n")):
        (tools / name).write_text(f"#!/bin/bash\n{body}")
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node0", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    path = f"{tools}:{os.environ['PATH']}"
    job = subprocess.Popen(["bash", str(SBATCH)], cwd=tmp_path, env=os.environ | slurm | {"PATH": path})
    until = time.monotonic() + PATIENCE
    while not (tmp_path / "started").exists() and time.monotonic() < until:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=PATIENCE) == (-signal.SIGTERM if requeued else 0)
    assert (tmp_path / "saved").exists()  # it waited for the ranks
    asked = tmp_path / "asked"
    assert (asked.read_text().strip() if asked.exists() else "") == ("requeue 7" if requeued else "")


def test_a_kubernetes_jobs_ranks_meet_at_a_pod_there_is() -> None:
    service, job = yaml.safe_load_all(KUBERNETES.read_text())
    nodes = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == nodes
    command = kubernetes_command()
    assert f"--nnodes={nodes}" in command
    assert f"--rdzv-endpoint={job['metadata']['name']}-0.{service['metadata']['name']}:29500" in command
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    gpus = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc-per-node={gpus}" in command
