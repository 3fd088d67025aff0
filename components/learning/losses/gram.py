"""Gram anchoring: keeps the similarities between patches those of an earlier teacher (arXiv 2508.10104, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gram_loss(student: Tensor, teacher: Tensor, normalize: bool = True, positive_only: bool = False) -> Tensor:
    """Mean squared difference of two matrices of patch similarities, image by image, in fp32.

    Args:
        student: patch tokens ``[B, N, D]``.
        teacher: patch tokens ``[B, N, D']`` of the gram teacher, on the student's grid; no gradient flows into it.
        normalize: compare cosines rather than products.
        positive_only: treat negative similarities as 0 in both.
    """
    with torch.autocast(student.device.type, enabled=False):
        grams = []
        for tokens in (student, teacher.detach()):
            tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            tokens = F.normalize(tokens, dim=-1) if normalize else tokens
            gram = tokens @ tokens.transpose(1, 2)
            grams.append(gram.clamp(min=0) if positive_only else gram)
        return F.mse_loss(grams[0], grams[1])


def resample_patches(patches: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Patch tokens ``[B, h * w, D]`` of a larger image brought to the student's grid ``to``, bicubic, antialiased."""
    if grid == to:
        return patches
    table = patches.float().view(patches.shape[0], *grid, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=to, mode="bicubic", antialias=True)
    return table.flatten(2).transpose(1, 2).to(patches.dtype)
