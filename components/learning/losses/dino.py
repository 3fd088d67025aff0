"""DINO: the student's view of a crop predicts the teacher's view of another (arXiv 2104.14294, section 3.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def cross_entropy_rows(logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """``-sum_k p_k log softmax(logits / temperature)_k`` in fp32 (or finer): ``[..., K]`` twice to ``[...]``.

    ``probabilities`` need not sum to one: the sum of two targets gives the sum of two cross-entropies.
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    target = probabilities.to(scaled.dtype)
    # not log_softmax: one [..., K] array less to store for backward
    return target.sum(-1) * torch.logsumexp(scaled, -1) - (target * scaled).sum(-1)


def cross_entropy(student_logits: Tensor, teacher_probs: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of one pair of crops: logits ``[B, K]`` and probabilities ``[B, K]`` to a scalar."""
    return cross_entropy_rows(student_logits, teacher_probs, temperature).mean()


class DinoLoss(NamedTuple):
    """Scalars; their sum is the DINO loss. Every cross-entropy term weighs 1 / (2 + 2 L)."""

    global_crops: Tensor
    local_crops: Tensor


def dino_loss(
    student_global: Tensor, student_local: Tensor | None, teacher_probs: Tensor, temperature: float = 0.1
) -> DinoLoss:
    """All pairs of a student's and a teacher's crop but the same crop twice.

    Two global terms (crop 1 against the teacher's crop 2 and back) and 2 L local ones; with 8 local crops each weighs
    1/18. Untrained, at K = 131,072, the terms are 1.31 and 10.47.

    Args:
        student_global: logits ``[2, B, K]`` or ``[2 B, K]`` (crop 1 of all images first), of *masked* global crops.
        student_local: logits ``[L, B, K]`` or ``[L B, K]``; None without local crops.
        teacher_probs: ``[2, B, K]`` or ``[2 B, K]``, of unmasked global crops, centred.
        temperature: the student's.
    """
    prototypes = teacher_probs.shape[-1]
    teacher = teacher_probs.reshape(2, -1, prototypes)
    images = teacher.shape[1]
    student = student_global.reshape(2, images, prototypes)
    local = None if student_local is None else student_local.reshape(-1, images, prototypes)
    terms = 2 + 2 * (0 if local is None else local.shape[0])
    across = cross_entropy_rows(student, teacher.flip(0), temperature).mean(1).sum() / terms
    if local is None:
        return DinoLoss(across, across.new_zeros(()))
    # A local crop meets both teachers' crops: one pass against their sum.
    within = cross_entropy_rows(local, teacher.sum(0), temperature).mean(1).sum() / terms
    return DinoLoss(across, within)
