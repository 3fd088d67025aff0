"""Where a launcher put a process: torchrun's variables and Slurm's."""

from __future__ import annotations

import pytest

from components.errors import VitrailError
from components.training.ranks.distributed import LaunchedRank, first_host, launched_rank

STEP = {
    "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3",
    "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "1",
}  # fmt: skip


def test_alone_without_a_launcher() -> None:
    assert launched_rank({}) == LaunchedRank(0, 1, 0, 1)
    assert launched_rank({"SLURM_NTASKS": "16"}) == LaunchedRank(0, 1, 0, 1)  # the shell of salloc
    assert launched_rank({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) == LaunchedRank(0, 1, 0, 1)


def test_tasks_of_a_slurm_step_are_the_ranks_of_one_run() -> None:
    assert launched_rank(STEP) == LaunchedRank(11, 16, 3, 8, ("gpu07", 10_000 + 4243))
    ranks = [launched_rank(STEP | {"SLURM_PROCID": str(rank)}) for rank in range(16)]
    assert [found.rank for found in ranks] == list(range(16))
    assert len({found.rendezvous for found in ranks}) == 1


def test_torchrun_goes_before_slurm_which_may_have_started_it() -> None:
    own = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert launched_rank(STEP | own) == LaunchedRank(5, 8, 1, 4)
    assert launched_rank({"RANK": "1", "WORLD_SIZE": "2"}) == LaunchedRank(1, 2, 0, 2)


def test_a_job_of_many_tasks_whose_script_forgot_srun_is_refused() -> None:
    script = {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "gpu[07-08]"}
    with pytest.raises(VitrailError, match=r"Slurm: the job has 16 tasks, .*; begin the command with srun or torchrun"):
        launched_rank(script)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[001-003,7],other", "node001"),
        ("a-b[12,14]-ib,c", "a-b12-ib"),
        ("rack[0-1]n[3-4]", "rack0n3"),
    ],
)
def test_the_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
