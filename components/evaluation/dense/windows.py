"""A whole picture through a network that reads squares: sliding windows, joined where they overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from components.images.decode import RGB


class Windows(NamedTuple):
    """Squares of a picture: [n, S, S, 3], the upper left corner of each, and the picture's height and width in px."""

    squares: npt.NDArray[np.uint8]
    corners: list[tuple[int, int]]
    size: tuple[int, int]


def windows(rgb: RGB, window: int, stride: int, scale: float = 1.0) -> Windows:
    """Squares of ``window`` px, ``stride`` px apart, of ``rgb`` with a shorter side of ``window * scale`` px.

    The last window of a row ends at the picture's edge. A square picture at scale 1 is one window; where the scale
    makes the picture smaller than a window, the picture keeps the window's size.
    """
    resized = shorter_side(rgb, max(window, round(window * scale)))
    height, width = resized.shape[:2]
    corners = [(top, left) for top in _starts(height, window, stride) for left in _starts(width, window, stride)]
    squares = np.stack([resized[top : top + window, left : left + window] for top, left in corners])
    return Windows(squares, corners, (height, width))


def _starts(side: int, window: int, stride: int) -> list[int]:
    return [*range(0, side - window, stride), side - window]


def join(parts: Sequence[npt.NDArray[np.float32]], cut: Windows) -> npt.NDArray[np.float32]:
    """Maps of windows, n of [K, S, S], as one map of the picture, [K, H, W]: the mean where they overlap."""
    if len(parts) == 1:
        return parts[0]
    window = parts[0].shape[1]
    total = np.zeros((parts[0].shape[0], *cut.size), np.float32)
    count = np.zeros(cut.size, np.float32)
    for part, (top, left) in zip(parts, cut.corners, strict=True):
        total[:, top : top + window, left : left + window] += part
        count[top : top + window, left : left + window] += 1
    return total / count


def shorter_side(rgb: RGB, side: int) -> RGB:
    """``rgb`` with a shorter side of ``side`` px, by the kernel of :func:`components.learning.crops.resize`."""
    height, width = rgb.shape[:2]
    size = shorter_size(height, width, side)
    if size == (height, width):
        return np.ascontiguousarray(rgb)
    planar = torch.from_numpy(np.array(rgb)).unsqueeze(0).permute(0, 3, 1, 2)  # in this order: seen as channels-last
    out = torch.nn.functional.interpolate(planar, size=size, mode="bicubic", antialias=True)[0]
    return np.ascontiguousarray(out.permute(1, 2, 0).numpy())


def shorter_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width in the same proportion, the shorter of ``side`` px."""
    scale = side / min(height, width)
    return max(side, round(height * scale)), max(side, round(width * scale))


def nearest_to(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """``values`` [H, W] at ``size``, each pixel the nearest one's value."""
    if values.shape == size:
        return values
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(size, values.shape, strict=True)
    )
    found: npt.NDArray[Any] = values[rows][:, columns]
    return found


def smooth_to(maps: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """``maps`` [K, H, W] at ``size``, bilinear."""
    if maps.shape[1:] == size:
        return maps
    found = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False)
    pixels: npt.NDArray[np.float32] = found[0].numpy()
    return pixels


def random_window(
    rgb: RGB, values: npt.NDArray[Any], window: int, generator: np.random.Generator
) -> tuple[RGB, npt.NDArray[Any]]:
    """A square of ``window`` px of a picture whose shorter side is that, and its values [window, window].

    Two draws say which share of the way it lies down and across, so windows of other sizes show the same part.
    """
    resized = shorter_side(rgb, window)
    height, width = resized.shape[:2]
    top, left = (
        int(share * (side - window + 1)) for share, side in zip(generator.random(2), (height, width), strict=True)
    )
    at = np.s_[top : top + window, left : left + window]
    return resized[at], nearest_to(values, (height, width))[at]
