"""Colour jitter, grayscale, blur and solarize on small uint8 crops, as the Pillow operations of the recipe define them.

Every function takes an image [H, W, 3] (RGB) or [H, W] (gray: colour operations that cannot change it are skipped, to
the same result) and returns one of the same kind. Blends truncate towards zero, as Pillow's do: the half level
that rounding would add is taken off, so no brightness drifts over three blends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from components.learning.crops import Image

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Pillow's "L" and OpenCV's gray weigh by
TRUNCATE = -0.5 + 1e-3  # turns OpenCV's rounding into truncation; the thousandth keeps whole numbers whole


def brightness(image: Image, factor: float) -> Image:
    """``factor * image``, clipped to 0 ... 255."""
    return _affine(image, factor, 0.0)


def contrast(image: Image, factor: float) -> Image:
    """Blend with the mean gray level m (a whole number): ``factor * image + (1 - factor) * m``, clipped."""
    import cv2

    means = cv2.mean(image)
    mean = means[0] if image.ndim == 2 else LUMA[0] * means[0] + LUMA[1] * means[1] + LUMA[2] * means[2]
    return _affine(image, factor, (1.0 - factor) * int(mean + 0.5))


def saturation(image: Image, factor: float) -> Image:
    """Blend with each pixel's own gray level: ``factor * image + (1 - factor) * gray``, clipped."""
    import cv2

    if image.ndim == 2:
        return image
    matrix = np.empty((3, 4), np.float32)
    matrix[:, :3] = np.multiply(LUMA, 1.0 - factor)
    matrix[:, 3] = TRUNCATE
    matrix[0, 0] += factor
    matrix[1, 1] += factor
    matrix[2, 2] += factor
    return _image(cv2.transform(image, matrix))


def hue(image: Image, shift: float) -> Image:
    """Turn the hue by ``shift`` of a full circle (-0.5 ... 0.5), through 8-bit HSV."""
    import cv2

    steps = int(shift * 255) % 256
    if image.ndim == 2 or steps == 0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL).reshape(-1)
    hsv += _hue_steps(steps, hsv.size)
    return _image(cv2.cvtColor(hsv.reshape(image.shape), cv2.COLOR_HSV2RGB_FULL))


def grayscale(image: Image) -> Image:
    """The gray level of each pixel, [H, W]."""
    import cv2

    return image if image.ndim == 2 else _image(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def blur(image: Image, kernel: int, sigma: float) -> Image:
    """Gaussian of ``kernel`` taps and ``sigma`` pixels, edges mirrored without repeating the edge pixel."""
    import cv2

    taps = gaussian_taps(kernel, sigma)
    return _image(cv2.sepFilter2D(image, -1, taps, taps))


def gaussian_taps(kernel: int, sigma: float) -> npt.NDArray[np.float32]:
    """``kernel`` samples of a Gaussian at whole pixels from the centre, summing to 1."""
    x = np.arange(kernel) - (kernel - 1) / 2
    weights = np.exp(-0.5 * np.square(x / sigma))
    taps: npt.NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return taps


def solarize(image: Image, threshold: int) -> Image:
    """Invert the levels at or above ``threshold``."""
    if threshold == 128:  # then every inverted level is below every kept one
        return np.minimum(image, ~image)
    return np.where(image >= threshold, ~image, image)


# The four jitters in the order in which their indices are shuffled.
JITTERS: tuple[Callable[[Image, float], Image], ...] = (brightness, contrast, saturation, hue)


def _affine(image: Image, gain: float, offset: float) -> Image:
    import cv2

    if image.ndim == 2:
        return _image(cv2.transform(image, np.array([[gain, offset + TRUNCATE]], np.float32)))
    matrix = np.zeros((3, 4), np.float32)
    matrix[0, 0] = matrix[1, 1] = matrix[2, 2] = gain
    matrix[:, 3] = offset + TRUNCATE
    return _image(cv2.transform(image, matrix))


@lru_cache(maxsize=64)
def _hue_steps(steps: int, size: int) -> npt.NDArray[np.uint8]:
    # Added whole, wrapping at 256: six times as fast as adding to every third byte.
    return np.tile(np.array([steps, 0, 0], np.uint8), size // 3)


def _image(array: object) -> Image:
    assert isinstance(array, np.ndarray)
    return array
