"""Scripted copies of an image, to calibrate on: what a re-publisher does to a picture, each by a fixed recipe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from components.descriptors.views import jpeg, squash
from components.images.samples import RGB

Edit = Callable[[RGB, np.random.Generator], RGB]


def _crop(low: float, high: float) -> Edit:
    def edit(rgb: RGB, generator: np.random.Generator) -> RGB:
        keep = generator.uniform(low, high)
        h, w = (max(1, round(side * keep)) for side in rgb.shape[:2])
        top, left = generator.integers(0, rgb.shape[0] - h + 1), generator.integers(0, rgb.shape[1] - w + 1)
        return jpeg(rgb[top : top + h, left : left + w], int(generator.integers(50, 91)))

    return edit


def _resize(rgb: RGB, generator: np.random.Generator) -> RGB:
    import cv2

    scale = generator.uniform(0.5, 0.9)
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    return jpeg(np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8), 90)


# name -> edit; the side that a crop keeps is relative, JPEG qualities are libjpeg's
EDITS: dict[str, Edit] = {
    "exact": lambda rgb, _: rgb,
    "jpeg 50-90": lambda rgb, generator: jpeg(rgb, int(generator.integers(50, 91))),
    "jpeg 20": lambda rgb, _: jpeg(rgb, 20),
    "resize 0.5-0.9": _resize,
    "resize 0.25": lambda rgb, _: jpeg(squash(rgb, max(1, min(rgb.shape[:2]) // 4)), 90),
    "crop 0.9-0.95": _crop(0.9, 0.95),
    "crop 0.8-0.9": _crop(0.8, 0.9),
    "crop 0.6-0.8": _crop(0.6, 0.8),
}


def planted(rgb: RGB, kind: str, generator: np.random.Generator) -> RGB:
    """The copy of ``rgb`` that :data:`EDITS` names ``kind``."""
    return EDITS[kind](rgb, generator)
