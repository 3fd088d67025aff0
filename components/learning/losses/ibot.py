"""iBOT: the student predicts the teacher's tokens of the patches hidden from it (arXiv 2111.07832, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from components.learning.losses.dino import cross_entropy_rows


class Masked(NamedTuple):
    """Hidden patches of a batch: ``positions`` int64 ``[M]`` into ``[images * N]``; ``weights`` fp32 ``[M]``."""

    positions: Tensor
    weights: Tensor


def masked_patches(masks: Tensor) -> Masked:
    """Flat positions of the true entries of ``masks`` (bool ``[images, N]``), weighted 1 / number in their image."""
    per_image = masks.sum(1).clamp(min=1)
    index = masks.flatten().nonzero().squeeze(1)
    return Masked(index, (1.0 / per_image.float())[index // masks.shape[1]])


def ibot_loss(
    student_logits: Tensor, teacher_probs: Tensor, weights: Tensor, images: int, temperature: float = 0.1
) -> Tensor:
    """Cross-entropy of hidden patches, averaged within an image, summed, and divided by ``images``.

    ``images`` counts ALL global crops (2 B), also those nothing is hidden of: with half of them masked the loss is half
    the mean cross-entropy, as in the released training. The original's log shows half of this value.

    Args:
        student_logits, teacher_probs: ``[M, K]``.
        weights: ``[M]``, 1 / number of hidden patches in the patch's image.
        images: number of global crops in the batch.
        temperature: the student's.
    """
    return (cross_entropy_rows(student_logits, teacher_probs, temperature) * weights).sum() / images
