"""Pictures made for copy detection: the squashed thumbnail that is embedded, windows, and mildly edited views.

The discriminant descriptor learns from the views here; the network from SSCD's stronger ones in edits.py. Everything
works on uint8 RGB [H, W, 3].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from components.images.samples import RGB
from components.params import Strict


class ViewParams(Strict):
    """How an edited view is drawn."""

    copy_crop: float = Field(0.4, gt=0, le=1)  # smallest area that an edited view keeps
    aspect: float = Field(1.2, ge=1, le=1000.0)  # largest stretch of a crop's sides against each other
    flip: float = Field(0.0, ge=0, le=1)  # probability of a mirror image (SSCD: 0.5); mirrored cells are other cells
    jitter: float = Field(0.6, ge=0, le=1)  # probability of a change of contrast (x 0.7 to 1.3) and brightness (+- 30)
    soften: float = Field(0.3, ge=0, le=1)  # probability of losing detail by scaling down and up
    blur: float = Field(0.3, ge=0, le=1)  # probability of a Gaussian blur, sigma 0.3 to 1.2 px at thumbnail size
    jpeg: float = Field(0.3, ge=0, le=1)  # probability of JPEG artefacts, quality 20 to 95 (SSCD: 0.2, 0 to 100)


def squash(rgb: RGB, side: int) -> RGB:
    """``rgb`` as [side, side, 3], aspect given up (SSCD's fast inference), area-averaged when it shrinks."""
    import cv2

    shrinks = min(rgb.shape[:2]) >= side
    small = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(small, np.uint8)


def reduce(rgb: RGB, side: int) -> RGB:
    """``rgb`` shrunk by a whole factor as far as its short side stays at least twice ``side``: cheap, then exact."""
    import cv2

    factor = min(rgb.shape[:2]) // (2 * side)
    if factor < 2:
        return rgb
    size = rgb.shape[1] // factor, rgb.shape[0] // factor
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True)
class Views:
    """Which views of a picture are described: itself, n x n evenly spread crops of it, and its mirror image.

    A crop that somebody made lies close to one of the windows, however little it is like the whole, and a mirrored copy
    to the mirror image. Views have numbers: 0 the whole, then the windows in order, then the mirror image.
    """

    windows: tuple[tuple[float, int], ...] = ()  # (side kept, n)
    flip: bool = False

    def __len__(self) -> int:
        return 1 + sum(count * count for _, count in self.windows) + self.flip

    def of(self, rgb: RGB) -> list[RGB]:
        """The views of ``rgb``, in order; whole and windows are no copies of its pixels."""
        height, width = rgb.shape[:2]
        found = [rgb]
        for keep, count in self.windows:
            h, w = max(1, round(height * keep)), max(1, round(width * keep))
            for top in np.linspace(0, height - h, count).round().astype(int):
                for left in np.linspace(0, width - w, count).round().astype(int):
                    found.append(rgb[top : top + h, left : left + w])
        return [*found, np.ascontiguousarray(rgb[:, ::-1])] if self.flip else found

    def name(self, view: int) -> str:
        """What the view of that number shows, in words."""
        left = view - 1
        for keep, count in self.windows:
            if 0 <= left < count * count:
                row, column = left // count + 1, left % count + 1
                return f"crop to {keep:g} of each side, row {row} and column {column} of {count}"
            left -= count * count
        return "mirrored" if view else "whole"


WHOLE = Views()


def random_view(rgb: RGB, side: int, smallest: float, params: ViewParams, generator: np.random.Generator) -> RGB:
    """One edited view [side, side, 3] of ``rgb`` that keeps at least ``smallest`` of its area."""
    import cv2

    height, width = rgb.shape[:2]
    area = generator.uniform(smallest, 1.0)
    stretch = np.exp(generator.uniform(-1, 1) * np.log(params.aspect) / 2)
    h = min(height, max(1, round(height * np.sqrt(area) * stretch)))
    w = min(width, max(1, round(width * np.sqrt(area) / stretch)))
    top, left = generator.integers(0, height - h + 1), generator.integers(0, width - w + 1)
    view = squash(rgb[top : top + h, left : left + w], side)
    if generator.random() < params.flip:
        view = np.ascontiguousarray(view[:, ::-1])
    if generator.random() < params.jitter:
        contrast, brightness = generator.uniform(0.7, 1.3), generator.uniform(-30, 30)
        view = np.asarray(cv2.convertScaleAbs(view, alpha=contrast, beta=128 * (1 - contrast) + brightness), np.uint8)
    if generator.random() < params.soften:
        view = squash(squash(view, int(generator.integers(side // 3, side))), side)
    if generator.random() < params.blur:
        view = np.asarray(cv2.GaussianBlur(view, (0, 0), generator.uniform(0.3, 1.2)), np.uint8)
    if generator.random() < params.jpeg:
        view = jpeg(view, int(generator.integers(20, 96)))
    return view


def jpeg(rgb: RGB, quality: int) -> RGB:
    """``rgb`` after a round trip through JPEG."""
    import cv2

    _, data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
