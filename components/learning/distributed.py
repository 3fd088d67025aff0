"""Which rank this is, and the few collectives that training needs, for one process and for many alike.

A process started alone needs no environment, no port and no launcher; torchrun's and Slurm's variables are obeyed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

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
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise VitrailError(
                f"rank {rank}: local rank {local_rank}, {torch.cuda.device_count()} CUDA devices; start a process a GPU"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # DeepSpeed reads these; a lone process gets them so that nothing goes looking for an MPI.
        for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", local_rank)):
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
