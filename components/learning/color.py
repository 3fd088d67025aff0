"""Colour jitter, grayscale, blur and solarize on small uint8 crops, as the Pillow operations of the recipe define them.

Images are [H, W, 3] (RGB) or [H, W] (gray: colour operations that cannot change it are skipped, to the same result).
Brightness, contrast and saturation are one kind of map, ``gain * x + gray * luma(x) + offset``; those that follow one
another are applied as one wherever none of them could have clipped in between.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components.learning.crops import Image

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Pillow's "L" and OpenCV's gray weigh by
TRUNCATED = -0.5 + 1e-3  # Pillow's blends truncate where OpenCV rounds; the thousandth keeps whole numbers whole
NEGLIGIBLE = 1 / 2048  # weight of the taps that a narrow Gaussian may drop: an eighth of a level at most


class Blend(NamedTuple):
    """The map ``x -> gain * x + gray * luma(x) + offset`` of a colour x in 0 ... 255."""

    gain: float
    gray: float
    offset: float

    def after(self, first: Blend) -> Blend:
        """This map applied to what ``first`` gives; luma of a gray colour is that gray, so the form is kept."""
        return Blend(
            self.gain * first.gain,
            self.gain * first.gray + self.gray * (first.gain + first.gray),
            (self.gain + self.gray) * first.offset + self.offset,
        )


IDENTITY = Blend(1.0, 0.0, 0.0)


def brightness(factor: float) -> Blend:
    """``factor * x``."""
    return Blend(factor, 0.0, TRUNCATED)


def contrast(factor: float, mean: float) -> Blend:
    """``factor * x + (1 - factor) * mean``, with the image's mean luma to the nearest whole level."""
    return Blend(factor, 0.0, (1.0 - factor) * int(mean + 0.5) + TRUNCATED)


def saturation(factor: float) -> Blend:
    """``factor * x + (1 - factor) * luma(x)``."""
    return Blend(factor, 1.0 - factor, TRUNCATED)


def jitter(image: Image, order: list[int], factors: list[float]) -> Image:
    """Brightness (0), contrast (1), saturation (2), hue (3) by ``factors`` (hue: a turn in circles), in ``order``."""
    pending = IDENTITY
    for which in order:
        factor = factors[which]
        if which == 3:
            image, pending = turn_hue(apply_blend(image, pending), factor), IDENTITY
            continue
        if which == 1:
            blend = contrast(factor, (pending.gain + pending.gray) * mean_luma(image) + pending.offset)
        else:
            blend = brightness(factor) if which == 0 else saturation(factor)
        pending = blend.after(pending)
        if factor > 1.0:  # may leave 0 ... 255, and must be clipped before the next
            image, pending = apply_blend(image, pending), IDENTITY
    return apply_blend(image, pending)


def apply_blend(image: Image, blend: Blend) -> Image:
    """``blend`` of every pixel, rounded and clipped."""
    import cv2

    gain, gray, offset = blend
    if blend == IDENTITY:
        return image
    if image.ndim == 2:
        return _image(cv2.transform(image, np.array([[gain + gray, offset]], np.float32)))
    if gray == 0.0:
        r = g = b = 0.0
    else:
        # OpenCV mixes channels in 1/1024ths. Rounded here so that a row still sums to gain + gray: grays stay gray.
        r, b = round(gray * LUMA[0] * 1024) / 1024, round(gray * LUMA[2] * 1024) / 1024
        total, gain = round((gain + gray) * 1024) / 1024, round(gain * 1024) / 1024
        g = total - gain - r - b
    matrix = np.array([[gain + r, g, b, offset], [r, gain + g, b, offset], [r, g, gain + b, offset]], np.float32)
    return _image(cv2.transform(image, matrix))


def mean_luma(image: Image) -> float:
    """The mean gray level."""
    import cv2

    red, green, blue, _ = cv2.mean(image)
    return red if image.ndim == 2 else LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def turn_hue(image: Image, turn: float) -> Image:
    """Turn the hue by ``turn`` of a full circle (-0.5 ... 0.5), through 8-bit HSV."""
    import cv2

    steps = int(turn * 255) % 256
    if image.ndim == 2 or steps == 0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv.reshape(len(hsv), -1)
    rows += _hue_steps(steps, rows.shape[1])
    return _image(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))


def grayscale(image: Image) -> Image:
    """The gray level of each pixel, [H, W]."""
    import cv2

    return image if image.ndim == 2 else _image(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def blur(image: Image, kernel: int, sigma: float) -> Image:
    """Gaussian of ``kernel`` taps and ``sigma`` pixels, edges mirrored without repeating the edge pixel."""
    import cv2

    taps = gaussian_taps(kernel, sigma)
    return image if len(taps) == 1 else _image(cv2.sepFilter2D(image, -1, taps, taps))


def gaussian_taps(kernel: int, sigma: float) -> npt.NDArray[np.float32]:
    """``kernel`` samples of a Gaussian around its centre, summing to 1, less the negligible outer ones."""
    import cv2

    taps: npt.NDArray[np.float32] = cv2.getGaussianKernel(kernel, sigma, cv2.CV_32F)[:, 0]  # type: ignore[assignment]
    drop = 0
    while taps[drop] < NEGLIGIBLE / 2 and drop < kernel // 2:
        drop += 1
    return taps[drop : kernel - drop]


def solarize(image: Image, threshold: int) -> Image:
    """Invert the levels at or above ``threshold``."""
    if threshold == 128:  # then every inverted level is below every kept one
        return np.minimum(image, ~image)
    return np.where(image >= threshold, ~image, image)


@lru_cache(maxsize=1024)
def _hue_steps(steps: int, size: int) -> npt.NDArray[np.uint8]:
    # Added to whole rows, wrapping at 256: several times as fast as adding to every third byte.
    return np.tile(np.array([steps, 0, 0], np.uint8), size // 3)


def _image(array: object) -> Image:
    assert isinstance(array, np.ndarray)
    return array
