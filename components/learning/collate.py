"""Samples to batches, and the one place where bytes become floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from components.learning.augment import AugmentParams, Sample

CHUNK = 1 << 18  # numbers normalised at a time: 1 MiB of floats stays in a core's cache through the three passes


class Crops(NamedTuple):
    """The crops of a batch of B images, view by view: float32 normalised, or uint8 as the workers send them."""

    globals: Tensor  # [2B, 3, G, G]: crop 1 of all images, then crop 2
    locals: Tensor  # [L*B, 3, l, l]: local crop 1 of all images, then 2, ...


def collate_bytes(samples: Sequence[Sample]) -> Crops:
    """Samples to uint8 crops, [.., 1, ..] where they are gray: a quarter of the floats' size on the way to a device."""
    return Crops(
        torch.from_numpy(np.concatenate([np.stack([s.globals[i] for s in samples]) for i in range(2)])),
        torch.from_numpy(
            np.stack([s.locals for s in samples], axis=1).reshape(-1, *samples[0].locals.shape[1:])
            if len(samples[0].locals)
            else np.empty((0, *samples[0].locals.shape[1:]), np.uint8)
        ),
    )


def normalize(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """uint8 [N, C, H, W], C 3 or 1 (gray), to ``(x / 255 - mean) / std``, [N, 3, H, W] of ``dtype`` on ``device``."""
    images = images.to(device, non_blocking=True)
    shift = torch.tensor(mean, device=device).view(1, -1, 1, 1) * 255
    scale = 1 / (torch.tensor(std, device=device).view(1, -1, 1, 1) * 255)
    if images.device.type != "cpu":
        return ((images.float() - shift) * scale).to(dtype)
    out = torch.empty((len(images), shift.shape[1], *images.shape[2:]))
    step = max(1, CHUNK // max(1, out[0].numel())) if len(out) else 1
    for start in range(0, len(images), step):
        part = out[start : start + step]
        part.copy_(images[start : start + step])
        part.sub_(shift).mul_(scale)
    return out.to(dtype)


def normalize_crops(crops: Crops, params: AugmentParams, device: torch.device | str = "cpu") -> Crops:
    """Both groups of crops as normalised float32 on ``device``."""
    return Crops(*(normalize(group, params.mean, params.std, device) for group in crops))


def collate(samples: Sequence[Sample], params: AugmentParams, device: torch.device | str = "cpu") -> Crops:
    """Samples to normalised float32 crops on ``device``."""
    return normalize_crops(collate_bytes(samples), params, device)
