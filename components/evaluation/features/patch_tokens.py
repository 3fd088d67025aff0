"""Tokens of patches, of a network or of raw pixels: what dense methods read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from components.evaluation.features.extract import Rows
from components.learning.collate import normalize
from components.learning.vit import VisionTransformer

RAW_PATCH = 16  # px of the cells that "raw pixels" are read by
# Of 24 blocks the released depth heads read 4, 11, 17 and 23 (counted from 0), which is not quite even.
RELEASED = {(24, 4): (4, 11, 17, 23)}


@dataclass(frozen=True)
class Reading:
    """Which tokens are read of a network."""

    blocks: int = 1  # so many, joined; all where a network has fewer
    spread: bool = False  # evenly over the depth, the last among them; else the last ones
    norm: bool = True  # through the final norm
    cls: bool = False  # the class token of the same block joined to each patch


@dataclass(frozen=True)
class PatchExtractor:
    """What turns pictures, uint8 [B, H, W, 3], into tokens of patches, float32 [B, patches, D], row by row.

    H and W are multiples of ``patch``.
    """

    patch: int  # px
    tokens: Callable[[npt.NDArray[np.uint8], Reading], Rows]


def network_patches(
    model: VisionTransformer, mean: Sequence[float], std: Sequence[float], device: torch.device | str
) -> PatchExtractor:
    """The extractor of a frozen network in eval mode."""

    @torch.inference_mode()
    def tokens(batch: npt.NDArray[np.uint8], reading: Reading) -> Rows:
        blocks = block_numbers(len(model.blocks), reading)
        pixels = normalize(torch.from_numpy(batch).permute(0, 3, 1, 2), mean, std, device)
        parts = []
        for out in model.intermediate(pixels, blocks, norm=reading.norm):
            parts.append(out.patches.float())
            if reading.cls:
                parts.append(out.cls.float()[:, None].expand_as(parts[-1]))
        found: Rows = torch.cat(parts, -1).cpu().numpy()
        return found

    return PatchExtractor(model.config.patch_size, tokens)


def raw_patches() -> PatchExtractor:
    """The extractor that learns nothing: the pixels of cells of :data:`RAW_PATCH` px in 0 ... 1."""
    return PatchExtractor(RAW_PATCH, lambda batch, _: cells(batch, batch.shape[1] // RAW_PATCH))


def cells(images: npt.NDArray[np.uint8], grid: int) -> Rows:
    """[n, H, W, C] as the pixels of its square patches, ``grid`` of them down: [n, patches, D] in 0 ... 1."""
    count, height, width, channels = images.shape
    patch = height // grid
    found = images.reshape(count, grid, patch, width // patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return found.reshape(count, -1, patch * patch * channels).astype(np.float32) / np.float32(255)


def block_numbers(depth: int, reading: Reading) -> list[int]:
    """The blocks, counted from 0, that ``reading`` asks of a network of so many."""
    count = min(reading.blocks, depth)
    if not reading.spread:
        return list(range(depth - count, depth))
    return list(RELEASED.get((depth, count), [(number + 1) * depth // count - 1 for number in range(count)]))
