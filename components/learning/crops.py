"""Where crops are cut and how they are resized: the random-resized-crop law, and antialiased bicubic on uint8.

The law is the one of Inception training as every self-supervised recipe uses it (DINOv2, Table 16 and its code): area
uniform in ``scale`` of the image's, aspect log-uniform in ``ratio``, ten tries, then the largest centred box whose
aspect is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]  # [H, W] or [H, W, 3]
TRIES = 10


class CropBox(NamedTuple):
    """A rectangle of whole pixels."""

    left: int
    top: int
    width: int
    height: int


class Draws:
    """Uniform numbers from a generator, fetched in bulk: one draw from NumPy costs as much as flipping a small crop."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._next: Callable[[], float] = iter(()).__next__

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        try:
            return self._next()
        except StopIteration:
            numbers: Iterator[float] = iter(self._generator.random(256).tolist())
            self._next = numbers.__next__
            return self._next()

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def below(self, count: int) -> int:
        """A whole number, uniform in 0 ... count - 1."""
        return int(self.unit() * count)  # below count: a double under 1 times a whole number rounds below that number

    def chance(self, probability: float) -> bool:
        """True with ``probability``; draws nothing when it is 0 or 1."""
        if probability <= 0.0:
            return False
        return probability >= 1.0 or self.unit() < probability


def sample_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], draws: Draws
) -> CropBox:
    """A random-resized-crop box in an image of ``width`` x ``height`` pixels."""
    low, span = math.log(ratio[0]), math.log(ratio[1] / ratio[0])
    least, extent = width * height * scale[0], width * height * (scale[1] - scale[0])
    for _ in range(TRIES):
        target = least + extent * draws.unit()
        aspect = math.exp(low + span * draws.unit())
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = draws.below(height - h + 1)
            left = draws.below(width - w + 1)
            return CropBox(left, top, w, h)
    return central_box(width, height, ratio)


def central_box(width: int, height: int, ratio: tuple[float, float]) -> CropBox:
    """The largest centred box whose aspect (width over height) lies in ``ratio``."""
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    return CropBox((width - w) // 2, (height - h) // 2, w, h)


def reduction(boxes: list[tuple[CropBox, int]]) -> int:
    """The largest of 8, 4, 2, 1 by which the JPEG may be shrunk while decoding, given ``(box, output side)`` pairs.

    A box still holds at least as many pixels as its output in both directions, so what the final resize averages over
    was only averaged earlier, by the decoder.
    """
    room = min(min(box.width, box.height) / side for box, side in boxes)
    return 8 if room >= 8 else 4 if room >= 4 else 2 if room >= 2 else 1


def shrink_box(box: CropBox, width: int, height: int, full_width: int, full_height: int) -> CropBox:
    """``box`` of the full image on a decoded image of ``width`` x ``height``, to the nearest whole pixel."""
    if (width, height) == (full_width, full_height):
        return box
    fx, fy = width / full_width, height / full_height
    left, top = round(box.left * fx), round(box.top * fy)
    right, bottom = round((box.left + box.width) * fx), round((box.top + box.height) * fy)
    return CropBox(left, top, max(1, min(right, width) - left), max(1, min(bottom, height) - top))


def resize_opencv(image: Image, side: int) -> Image:
    """``image`` as ``side`` x ``side`` by OpenCV's bicubic: a sharper kernel (a = -0.75) that does not widen.

    Where a crop grows, 0.4 levels off :func:`resize` on average and up to 7; where it shrinks by 1.6, 1 to 2.5 and up
    to 50, which is aliasing. About two fifths of the time.
    """
    import cv2

    if image.shape[:2] == (side, side):
        return np.ascontiguousarray(image)
    out: Image = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)  # type: ignore[assignment]
    return out


def resize(image: Image, side: int) -> Image:
    """``image`` as ``side`` x ``side``: bicubic (a = -0.5) whose kernel widens when it shrinks, as Pillow does it.

    PyTorch's uint8 kernel does this in fixed point with vector instructions: within 2 levels of Pillow, 0.01 on
    average, at a third of its time.
    """
    import torch

    if image.shape[:2] == (side, side):
        return np.ascontiguousarray(image)
    if not image.flags.writeable:  # pixels that Pillow owns, which PyTorch would warn about
        image = image.copy()
    if image.ndim == 2:
        planar = torch.from_numpy(image)[None, None]
    else:
        planar = torch.from_numpy(image).unsqueeze(0).permute(0, 3, 1, 2)  # in this order: seen as channels-last
    out = torch.nn.functional.interpolate(planar, size=(side, side), mode="bicubic", antialias=True)[0]
    interleaved: Image = out[0].numpy() if image.ndim == 2 else out.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(interleaved)
