"""Samples to batches, and the one place where bytes become floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.learning.augment import AugmentParams, Sample

CHUNK = 1 << 18  # numbers normalised at a time: 1 MiB of floats stays in a core's cache through the three passes


class Uncolored(NamedTuple):
    """A batch whose colour operations are left to the device: uint8 crops, and what was drawn for each in order."""

    globals: Tensor  # uint8 [2B, C, G, G]
    locals: Tensor  # uint8 [L*B, C, l, l]
    global_colors: Tensor  # float32 [2B, 8], rows of ViewDraw.color()
    local_colors: Tensor  # float32 [L*B, 8]
    anchors: Tensor | None = None  # uint8 [2B, C, S, S]


class Crops(NamedTuple):
    """The crops of a batch of B images, view by view: float32 normalised, or uint8 as workers send them to a device."""

    globals: Tensor  # [2B, 3, G, G]: crop 1 of all images, then crop 2
    locals: Tensor  # [L*B, 3, l, l]: local crop 1 of all images, then 2, ...
    anchors: Tensor | None = None  # [2B, 3, S, S]: the global crops for a gram teacher that sees more


def collate(samples: Sequence[Sample], params: AugmentParams) -> Crops:
    """Samples to normalised float32 crops, each image's bytes turned into floats straight where they belong."""

    def group(views: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        count, _, height, width = views[0].shape
        out = torch.empty((count, len(views), 3, height, width))
        shift, scale = _constants(params.mean, params.std, "cpu")
        for i, view in enumerate(views):
            for source, target in zip(torch.from_numpy(view), out[:, i], strict=True):
                target.copy_(source).sub_(shift).mul_(scale)
        return out.flatten(0, 1)

    large, small, anchors = _groups(samples)
    return Crops(group(large), group(small), group(anchors) if anchors else None)


def collate_bytes(samples: Sequence[Sample]) -> Crops | Uncolored:
    """Samples to uint8 crops, [.., 1, ..] where they are gray: a quarter of the floats' size on the way to a device."""

    def group(views: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        return torch.from_numpy(np.stack(views, axis=1)).flatten(0, 1)

    views = _groups(samples)
    large, small, anchors = group(views[0]), group(views[1]), group(views[2]) if views[2] else None
    colors = [s.colors for s in samples if s.colors is not None]
    if not colors:
        return Crops(large, small, anchors)
    by_view = torch.from_numpy(np.stack(colors, axis=1))  # [2 + L, B, 8]
    return Uncolored(large, small, by_view[:2].flatten(0, 1), by_view[2:].flatten(0, 1), anchors)


ViewArrays = list[npt.NDArray[np.uint8]]


def _groups(samples: Sequence[Sample]) -> tuple[ViewArrays, ViewArrays, ViewArrays]:
    """Global crops, local crops and anchors (none, perhaps) of all samples."""
    anchors = [s.anchors for s in samples if s.anchors is not None]
    return [s.globals for s in samples], [s.locals for s in samples], anchors


def normalize(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Levels 0 ... 255 [N, C, H, W], C 3 or 1 (gray), to ``(x / 255 - mean) / std``, [N, 3, H, W] on ``device``."""
    images = images.to(device, non_blocking=True)
    shift, scale = _constants(mean, std, device)
    if images.device.type != "cpu":
        return ((images.float() - shift) * scale).to(dtype)
    out = torch.empty((len(images), len(mean), *images.shape[2:]))
    step = max(1, CHUNK // max(1, out[0].numel())) if len(out) else 1
    for start in range(0, len(images), step):
        out[start : start + step].copy_(images[start : start + step]).sub_(shift).mul_(scale)
    return out.to(dtype)


def normalize_crops(crops: Crops | Uncolored, params: AugmentParams, device: torch.device | str = "cpu") -> Crops:
    """All groups of uint8 crops as normalised float32 on ``device``, colour operations done where they still wait."""
    if isinstance(crops, Uncolored):
        from components.learning.color_batch import apply_colors

        large = apply_colors(crops.globals, crops.global_colors, params, device)
        small = apply_colors(crops.locals, crops.local_colors, params, device)
        crops = Crops(large, small, crops.anchors)
    large, small = (normalize(group, params.mean, params.std, device) for group in crops[:2])
    anchors = None if crops.anchors is None else normalize(crops.anchors, params.mean, params.std, device)
    return Crops(large, small, anchors)


def _constants(mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """What to subtract from levels 0 ... 255 and what to multiply by then, [C, 1, 1] each."""
    return (
        torch.tensor(mean, device=device)[:, None, None] * 255,
        1 / (torch.tensor(std, device=device)[:, None, None] * 255),
    )
