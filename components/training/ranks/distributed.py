"""Which rank this is, and the few collectives that training needs, for one process and for many alike.

A process started alone needs no environment, no port and no launcher; torchrun's variables are obeyed, and Slurm's in
the tasks that ``srun`` starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from components.errors import VitrailError


@dataclass(frozen=True)
class World:
    """This process's place among the ranks."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this rank writes the files and talks to the user."""
        return self.rank == 0


class LaunchedRank(NamedTuple):
    """Where a launcher put this process."""

    rank: int
    size: int
    local_rank: int
    local_size: int  # ranks on this machine
    rendezvous: tuple[str, int] | None = None  # host of rank 0 and port, where the launcher does not name them itself


def launched_rank(env: Mapping[str, str] = os.environ) -> LaunchedRank:
    """What torchrun's variables say, or those of a Slurm step; alone without either.

    Raises:
        VitrailError: Slurm's job has several tasks, but this process is none of them: all would start the same run.
    """
    if "WORLD_SIZE" in env:
        rank, size, local = (int(env.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return LaunchedRank(rank, size, local, int(env.get("LOCAL_WORLD_SIZE", size)))
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")))
    if tasks == 1 or "SLURM_PROCID" not in env:  # a shell that salloc opened is no task
        return LaunchedRank(0, 1, 0, 1)
    if "SLURM_STEP_NUM_TASKS" not in env or "SLURM_STEP_NODELIST" not in env:
        raise VitrailError(
            f"Slurm: the job has {tasks} tasks, but this process was not started as one of them; begin the command "
            "with srun or torchrun (see infra/slurm/pretrain.sbatch), or ask for --ntasks=1"
        )
    here = [int(count) for count in re.findall(r"(?:^|,)(\d+)", env.get("SLURM_STEP_TASKS_PER_NODE", str(tasks)))]
    # below the ports that systems hand out by themselves; other steps of the machine meet elsewhere
    port = 10_000 + (int(env.get("SLURM_JOB_ID", "0")) + int(env.get("SLURM_STEP_ID", "0"))) % 20_000
    rendezvous = (first_host(env["SLURM_STEP_NODELIST"]), port)
    return LaunchedRank(int(env["SLURM_PROCID"]), tasks, int(env.get("SLURM_LOCALID", "0")), max(here), rendezvous)


def first_host(nodes: str) -> str:
    """The first of Slurm's list of hosts: ``gpu[07-09,12],login`` begins with ``gpu07``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else nodes)


def pick_device(name: str = "auto") -> torch.device:
    """``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        VitrailError: CUDA was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise VitrailError("engine.device: cuda was asked for, but no CUDA device is visible; use device: cpu or auto")
    return torch.device(name)


def join(device: torch.device, timeout_minutes: float = 30.0) -> World:
    """Join the process group that the launcher describes, or make one of this process alone; twice is once.

    Raises:
        VitrailError: the other ranks did not come, or there are more ranks on this machine than GPUs.
    """
    rank, size, local_rank, _, rendezvous = launched_rank()
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise VitrailError(
                f"rank {rank}: local rank {local_rank}, {torch.cuda.device_count()} CUDA devices; start a process a "
                "GPU, each of which sees all of its machine (Slurm: --gpus-per-node)"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # torch and DeepSpeed read these; a lone process gets them so that nothing goes looking for an MPI.
        found: dict[str, object] = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank}
        if rendezvous is not None:
            found |= {"MASTER_ADDR": rendezvous[0], "MASTER_PORT": rendezvous[1]}
        for name, value in found.items():
            os.environ.setdefault(name, str(value))
        backend = "nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(minutes=timeout_minutes)
        if size == 1:
            dist.init_process_group(
                backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1, timeout=timeout
            )
        else:
            try:
                dist.init_process_group(backend, timeout=timeout)
            except (ValueError, RuntimeError) as fault:
                where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
                raise VitrailError(f"rank {rank} of {size}: cannot join the others at {where}: {fault}") from None
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)


def sum_(tensor: Tensor) -> Tensor:
    """``tensor`` summed over the ranks, in place."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def agree(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether ``flag`` holds on every rank."""
    return float(sum_(torch.tensor(float(not flag), device=device))) == 0.0


def anywhere(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether ``flag`` holds on any rank."""
    return not agree(not flag, device)


def gather_objects(value: Any) -> list[Any]:
    """Every rank's small ``value`` (JSON-like), on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_shards(shard: Tensor) -> Tensor:
    """The ranks' equally long 1-d shards, one after the other, on every rank."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    if size == 1:
        return shard
    whole = torch.empty(size * shard.numel(), dtype=shard.dtype, device=shard.device)
    dist.all_gather_into_tensor(whole, shard.contiguous())
    return whole


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
