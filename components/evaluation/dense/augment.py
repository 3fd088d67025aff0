"""Changes of training windows for heads that are fitted on pixels: scale, place, left and right, colours.

What DINOv2 trains its linear heads with (arXiv 2304.07193, section 7.4, by the habits of semantic segmentation): the
picture is enlarged or shrunk, cut at a random place, mirrored and recoloured. Labels move with their pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from components.evaluation.dense.windows import nearest_to, shorter_side
from components.images.decode import RGB
from components.learning import color
from components.learning.augment import JitterParams
from components.params import Factor, Share, Strict


class DenseAugmentParams(Strict):
    """How a window differs from its picture; drawn anew for each."""

    scale: tuple[Factor, Factor] = (0.5, 2.0)  # of the picture's shorter side to the window's, uniform
    hflip: Share = 0.5  # how often left and right change places
    jitter: JitterParams = Field(default_factory=JitterParams)

    @model_validator(mode="after")
    def _ordered(self) -> DenseAugmentParams:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: {self.scale[0]:g} is above {self.scale[1]:g}; the smaller one comes first")
        return self


def augmented_window(
    picture: tuple[RGB, npt.NDArray[Any]],
    window: int,
    hole: float,
    params: DenseAugmentParams,
    generator: np.random.Generator,
) -> tuple[RGB, npt.NDArray[Any]]:
    """A square of ``window`` px of a picture [H, W, 3] and what is known at its pixels [H, W].

    A picture that the scale makes smaller than the window is continued with its mean colour, and there ``hole`` is
    what is known.
    """
    rgb, values = picture
    resized = shorter_side(rgb, max(1, round(window * generator.uniform(*params.scale))))
    known = nearest_to(values, resized.shape[:2])
    if min(resized.shape[:2]) < window:
        resized, known = _continued(resized, known, window, hole)
    top, left = (int(generator.random() * (side - window + 1)) for side in resized.shape[:2])
    at = np.s_[top : top + window, left : left + window]
    square, known = resized[at], known[at]
    if generator.random() < params.hflip:
        square, known = square[:, ::-1], known[:, ::-1]
    return _recoloured(np.ascontiguousarray(square), params.jitter, generator), np.ascontiguousarray(known)


def _continued(rgb: RGB, values: npt.NDArray[Any], window: int, hole: float) -> tuple[RGB, npt.NDArray[Any]]:
    height, width = (max(side, window) for side in values.shape)
    wider = np.empty((height, width, 3), np.uint8)
    wider[:] = rgb.reshape(-1, 3).mean(0).round().astype(np.uint8)
    known = np.full((height, width), hole, values.dtype)
    wider[: len(rgb), : rgb.shape[1]], known[: len(rgb), : rgb.shape[1]] = rgb, values
    return wider, known


def _recoloured(rgb: RGB, params: JitterParams, generator: np.random.Generator) -> RGB:
    """Brightness, contrast, saturation and hue, in random order, as in training."""
    if generator.random() >= params.probability:
        return rgb
    strengths = (params.brightness, params.contrast, params.saturation)
    factors = [float(generator.uniform(1 - strength, 1 + strength)) for strength in strengths]
    factors.append(float(generator.uniform(-params.hue, params.hue)))
    return np.asarray(color.jitter(rgb, generator.permutation(4).tolist(), factors), np.uint8)
