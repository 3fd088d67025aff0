"""Collectives that are plain identities without a process group, so losses run the same on one device and on many."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size(group: dist.ProcessGroup | None) -> int:
    """Ranks in ``group``; 1 for None."""
    return 1 if group is None else dist.get_world_size(group)


def sum_over(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of ``tensor`` over the ranks of ``group`` (no gradient); ``tensor`` itself is left as it is."""
    if group is None:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total, group=group)
    return total


def max_over(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The elementwise maximum of ``tensor`` over the ranks of ``group`` (no gradient)."""
    if group is None:
        return tensor
    most = tensor.detach().clone()
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group)
    return most


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.rank, ctx.size = group, dist.get_rank(group), tensor.shape[0]
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, tensor.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total.narrow(0, ctx.rank * ctx.size, ctx.size), None


def gather(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Rows ``[n, ...]`` of every rank as ``[world * n, ...]``; gradients come back to the rank that owns a row."""
    if group is None:
        return tensor
    out: Tensor = _Gather.apply(tensor, group)
    return out
