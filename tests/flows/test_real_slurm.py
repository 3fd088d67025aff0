"""The training script and its flow's hands on a real Slurm: a controller and two nodes of eight GPUs, all here."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from patience import PATIENCE

from components.errors import VitrailError
from flows.clusters import RUNNING, WAITING, Slurm, follow

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (shutil.which("slurmctld") and shutil.which("slurmd") and shutil.which("sbatch")),
    reason="left out: no Slurm here (apt-get install slurmctld slurmd slurm-client)",
)
# A torchrun that says what it was asked for, works until it is told to go on or to save, and resumes what it saved.
TORCHRUN = """#!/bin/bash
trap 'touch "$STATE/saved"; echo saving; exit 1' TERM
[ -e "$STATE/saved" ] && saved=yes
echo "$SLURM_NODEID: $*" >> "$STATE/asked"
if [ "$saved" ]; then echo "resumed"; exit 0; fi
for step in $(seq 100000); do
    echo "pretrain: $step/9 steps"
    [ -e "$STATE/go" ] && exit 0
    sleep 0.1 & wait $!
done
"""
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
CredType=cred/none
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=64 RealMemory=1000 Gres=gpu:8
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=64 RealMemory=1000 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def real_slurm(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    for number in range(8):
        (folder / f"gpu{number}").touch()
    ports = [free_port() for _ in range(3)]
    host, user = os.uname().nodename.partition(".")[0], psutil.Process().username()
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, user=user, ports=ports))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    commands = [["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", "one"], ["slurmd", "-D", "-N", "two"]]
    running = []
    try:
        for number, command in enumerate(commands):
            with open(folder / f"{number}.log", "w") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        asked = ["sinfo", "--noheader", "--Node", "--format=%T"]
        until(lambda: subprocess.run(asked, capture_output=True, text=True).stdout.split() == ["idle", "idle"])
        yield
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait()
        patch.undo()


@pytest.fixture
def checkout(real_slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("infra/slurm/pretrain.sbatch", "infra/local/telemetry-off.env"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    tools = tmp_path / ".venv/bin"
    tools.mkdir(parents=True)
    (tools / "activate").write_text(f"export PATH={tools}:$PATH\n")
    (tools / "torchrun").write_text(TORCHRUN)
    (tools / "torchrun").chmod(0o755)
    monkeypatch.setenv("STATE", str(tmp_path))
    return tmp_path


class Impatient(Slurm):
    """Slurm keeps a requeued job back for two minutes; this one waits for three seconds.

    It must be some: nodes know a run of a job by the second of its start, and refuse the one that begins in the second
    in which they ended the last ("Job credential revoked"). That job then counts as failed.
    """

    since: float | None = None  # it waits

    def state(self, job: str) -> str:
        found = super().state(job)
        if found != WAITING:
            self.since = None
        elif self.since is None:
            self.since = time.monotonic()
        elif time.monotonic() - self.since > 3:
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)
        return found


def job(checkout: Path) -> Slurm:
    return Impatient(checkout, "infra/slurm/pretrain.sbatch", 2, {"PRESET": "vitt"})


def left(checkout: Path) -> list[str]:
    """What still runs of a job: its processes' command lines."""
    lines = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(checkout / ".venv/bin/torchrun") in line]


def test_the_training_script_runs_on_both_nodes_and_its_lines_come(checkout: Path) -> None:
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        if "steps" in line:
            (checkout / "go").touch()

    assert follow(job(checkout), take, every=0.2) == ""
    assert any("pretrain: 1/9 steps" in line for line in lines)
    asked = (checkout / "asked").read_text().splitlines()
    assert sorted(line[0] for line in asked) == ["0", "1"]
    first = "one"  # of the nodes, as Slurm names them
    for line in asked:
        assert {"--nnodes=2", "--nproc-per-node=8", "params/pretrain/vitt.yaml", "data/pretrain/vitt"} <= set(
            line.split()
        )
        assert f"--rdzv-endpoint={first}:29500" in line.split()
    assert left(checkout) == []


def test_a_cancelled_run_leaves_neither_job_nor_process(checkout: Path) -> None:
    def struck(line: str) -> None:
        if "steps" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(job(checkout), struck, every=0.2, grace=PATIENCE)
    assert subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout == ""
    until(lambda: left(checkout) == [])


def test_the_job_of_a_run_that_was_killed_goes_on_and_the_next_run_names_it(checkout: Path) -> None:
    number = job(checkout).submit()  # and nobody follows it
    until(lambda: job(checkout).state(number) == RUNNING)
    with pytest.raises(VitrailError, match=f"job {number} of an earlier run still works .*scancel {number}"):
        follow(job(checkout), print, every=0.2)
    subprocess.run(["scancel", number], check=True)
    until(lambda: job(checkout).state(number) not in (WAITING, RUNNING))
    job(checkout).refuse_second()
    until(lambda: left(checkout) == [])


def test_a_job_whose_time_ends_saves_is_queued_again_and_resumes(checkout: Path) -> None:
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        if "steps" in line and sum("steps" in one for one in lines) == 1:  # as Slurm does before the time ends
            number = lines[0].split()[1]
            until(lambda: len((checkout / "asked").read_text().splitlines()) == 2)  # both ranks work
            subprocess.run(["scancel", "--batch", "--signal=TERM", number], check=True)

    assert follow(job(checkout), take, every=0.2) == ""
    assert any("saving" in line for line in lines)
    assert any("resumed" in line for line in lines)
    assert len((checkout / "asked").read_text().splitlines()) == 4
