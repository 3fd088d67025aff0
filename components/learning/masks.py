"""Block-wise masks for iBOT (arXiv 2106.08254, algorithm 1, with the stratified ratios of DINOv2)."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.params import CHANGES, Strict


class MaskParams(Strict):
    """Which global crops are masked, and how much of each."""

    effect: ClassVar = CHANGES
    probability: float = Field(default=0.5, ge=0, le=1)  # share of the global crops that are masked
    ratio_min: float = Field(default=0.1, ge=0, le=1)  # least share of hidden patches; shares are stratified between
    ratio_max: float = Field(default=0.5, ge=0, le=1)
    min_patches: int = Field(default=4, gt=0, le=1_000_000)  # least area of a block, patches
    aspect: float = Field(default=0.3, gt=0, le=1)  # least height / width of a block; the most is its inverse
    tries: int = Field(default=10, gt=0, le=1000)  # to place one block
    cyclic_shift: bool = False  # roll each mask by a random offset: no part of the image is hidden more often

    @model_validator(mode="after")
    def _ordered(self) -> MaskParams:
        if self.ratio_min > self.ratio_max:
            raise ValueError(f"ratio_min {self.ratio_min} is above ratio_max {self.ratio_max}")
        return self


def sample_masks(
    n_images: int, grid: tuple[int, int], params: MaskParams, generator: np.random.Generator | torch.Generator
) -> Tensor:
    """Masks of ``n_images`` global crops, true where a patch is hidden.

    ``int(n * probability)`` crops are masked. Image i of them aims at a share drawn from the i-th of as many equal
    steps from ``ratio_min`` to ``ratio_max``, so every batch holds light and heavy masks; the list is then shuffled,
    so that the two crops of one image are masked independently.

    Args:
        n_images: 2 B.
        grid: rows and columns of patches.
        params: see :class:`MaskParams`.
        generator: numpy's; of a torch generator one draw is taken as seed.

    Returns:
        bool ``[n_images, rows * columns]`` on the CPU.
    """
    if isinstance(generator, torch.Generator):
        generator = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    rows, columns = grid
    count = int(n_images * params.probability)
    masks = np.zeros((n_images, rows, columns), dtype=bool)
    edges = np.linspace(params.ratio_min, params.ratio_max, count + 1)
    for number in range(count):
        target = int(rows * columns * generator.uniform(edges[number], edges[number + 1]))
        block_mask(masks[number], target, params, generator)
        if params.cyclic_shift:
            shift = (int(generator.integers(rows)), int(generator.integers(columns)))
            masks[number] = np.roll(masks[number], shift, axis=(0, 1))
    generator.shuffle(masks, axis=0)
    return torch.from_numpy(masks.reshape(n_images, rows * columns))


def block_mask(mask: np.ndarray, target: int, params: MaskParams, generator: np.random.Generator) -> None:
    """Hide up to ``target`` patches of ``mask`` (bool ``[rows, columns]``, in place) by rectangles.

    Never more than ``target``; less when a rectangle finds no place in ``params.tries`` tries.
    """
    hidden, most = 0, mask.size // 2
    while hidden < target:
        added = _place_block(mask, min(target - hidden, most), params, generator)
        if not added:
            break
        hidden += added


def _place_block(mask: np.ndarray, room: int, params: MaskParams, generator: np.random.Generator) -> int:
    """Hide one rectangle that adds 1 to ``room`` patches; returns how many it added, 0 when no try fitted."""
    rows, columns = mask.shape
    log_aspect = math.log(params.aspect)
    for _ in range(params.tries):
        area = params.min_patches + (room - params.min_patches) * generator.random()
        aspect = math.exp(log_aspect * (1 - 2 * generator.random()))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= columns:  # strictly smaller than the grid
            continue
        top, left = generator.integers(rows - height + 1), generator.integers(columns - width + 1)
        block = mask[top : top + height, left : left + width]
        new = block.size - int(block.sum())
        if 0 < new <= room:
            block[...] = True
            return new
    return 0
