"""Sinkhorn-Knopp centring of the teacher: every prototype gets the same share of a batch (arXiv 2006.09882, 3.1)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from components.learning.losses.collective import max_over, sum_over


@torch.no_grad()
def sinkhorn_knopp(
    logits: Tensor, temperature: float, iterations: int = 3, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Targets whose rows sum to one and whose prototypes are used evenly over the batch of all ranks.

    Done with logarithms: nothing overflows, where ``exp(logit / temperature)`` does from logits of about 88 times
    the temperature. The factors K and B of the textbook form cancel when a row is normalised last, so ranks may hold
    different numbers of rows (iBOT's hidden patches), none even.

    Args:
        logits: the teacher's, ``[B, K]``, any float type.
        temperature: the teacher's.
        iterations: 3 in the recipe.
        group: normalise prototypes over the rows of all its ranks.

    Returns:
        fp32 (fp64 for fp64) ``[B, K]``, without gradient.
    """
    log_q = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    for _ in range(iterations):
        log_q = log_q - _logsumexp_rows(log_q, group)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp_()


def _logsumexp_rows(log_q: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """``log sum exp`` over the rows of all ranks, ``[B, K]`` to ``[K]``."""
    if group is None:
        return log_q.logsumexp(0)
    empty = log_q.new_full((log_q.shape[1],), -torch.inf)
    most = max_over(log_q.amax(0) if log_q.shape[0] else empty, group)
    return sum_over((log_q - most).exp().sum(0), group).log() + most
