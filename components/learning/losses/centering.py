"""Softmax centring of the teacher: subtract a running mean of its logits (arXiv 2104.14294, section 3.1)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from components.learning.losses.collective import sum_over


@torch.no_grad()
def centered_softmax(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """``softmax((logits - center) / temperature)`` in fp32: ``[..., K]`` with ``center`` ``[K]`` or ``[1, K]``."""
    return torch.softmax((logits.to(center.dtype) - center) / temperature, dim=-1)


@torch.no_grad()
def update_center(
    center: Tensor, logits: Tensor, momentum: float = 0.9, group: dist.ProcessGroup | None = None
) -> Tensor:
    """The centre after a batch: ``momentum * center + (1 - momentum) * mean of the logits of all ranks``.

    The state is the caller's; nothing is changed in place. Ranks count by their rows, so the mean over hidden patches
    is that of all patches together. A mean that is not finite leaves the centre as it is, on all ranks alike: its step
    is skipped, but a centre once lost would make every later one so, too.

    Args:
        center: fp32 ``[K]`` or ``[1, K]``.
        logits: the teacher's, ``[..., K]``.
        momentum: of the moving average.
        group: take the mean over all its ranks.
    """
    rows = logits.reshape(-1, logits.shape[-1]).to(center.dtype)
    count = center.new_full((1,), rows.shape[0])
    total = sum_over(torch.cat([rows.sum(0), count]), group)
    if total[-1] == 0:
        return center.clone()
    mean = (total[:-1] / total[-1]).view_as(center)
    return torch.where(torch.isfinite(mean).all(), center * momentum + mean * (1 - momentum), center)
