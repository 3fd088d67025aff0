"""Flow ``pretrain``: one preset's teacher, ``prefect deployment run pretrain/vitt --watch``.

It runs on the worker's machine, or on several nodes of a ``cluster``, in a job that the worker follows.
"""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State

from flows.launch import run_on_cluster, run_preset


@flow(name="pretrain")
def pretrain(
    preset: str, cluster: Literal["", "slurm", "kubernetes"] = "", nodes: int = 1, options: tuple[str, ...] = ()
) -> State[Any]:
    """Check that this machine can train ``preset``, then run its stage; or train it on ``nodes`` of a ``cluster``.

    Args:
        options: of sbatch, such as ``--partition=gpu``.
    """
    if cluster:
        return run_on_cluster(preset, cluster, nodes, options)
    return run_preset("pretrain", preset)
