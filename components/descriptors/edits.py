"""Random edits of a picture that leave it a copy, and mixtures of pictures: what the network learns to see through.

SSCD's "advanced" augmentations and its mixing (Pizzi et al. 2022, sections 4.2 and 4.3). Pictures are uint8 RGB.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from components.descriptors.overlays import overlay
from components.descriptors.train_params import EditParams, MixParams
from components.descriptors.views import jpeg, squash
from components.images.samples import RGB
from components.learning import color

BLUR_SIDE = 224  # the side at which EditParams.blur_sigma is in pixels
FILL = 128  # gray of the corners that a turn opens


def edited(rgb: RGB, side: int, params: EditParams, generator: np.random.Generator) -> RGB:
    """One edited view [side, side, 3] of ``rgb`` [H, W, 3]."""

    def happens(probability: float) -> bool:
        return bool(generator.random() < probability)

    if happens(params.flip):
        rgb = np.ascontiguousarray(rgb[:, ::-1])
    if happens(params.quarter_turn):
        rgb = np.ascontiguousarray(np.rot90(rgb, int(generator.integers(1, 4))))
    rgb = overlay(rgb, params.overlays, generator)
    if happens(params.turn):
        rgb = turned(rgb, generator.uniform(-180, 180))
    view = squash(_crop(rgb, params, generator), side)
    if happens(params.jitter):
        spans = params.brightness, params.contrast, params.saturation
        factors = [float(generator.uniform(max(0.0, 1 - span), 1 + span)) for span in spans]
        turn = float(generator.uniform(-params.hue, params.hue))
        view = color.jitter(view, generator.permutation(4).tolist(), [*factors, turn])
    if happens(params.gray):
        view = np.repeat(color.grayscale(view)[..., None], 3, axis=2)
    if happens(params.blur):
        sigma = generator.uniform(*params.blur_sigma) * side / BLUR_SIDE
        view = color.blur(view, 2 * max(1, round(3 * sigma)) + 1, sigma)
    if happens(params.jpeg):
        low, high = params.jpeg_quality
        view = jpeg(view, int(generator.integers(low, high + 1)))
    return view


def turned(rgb: RGB, degrees: float) -> RGB:
    """``rgb`` turned about its centre within its own size; corners that open are gray."""
    import cv2

    height, width = rgb.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    fill = (FILL, FILL, FILL)
    return np.asarray(cv2.warpAffine(rgb, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=fill), np.uint8)


def mix(views: RGB, sources: NDArray[np.int64], params: MixParams, generator: np.random.Generator) -> NDArray[np.int64]:
    """Mix rows of ``views`` [N, s, s, 3], in place, with rows of other images; returns [N, 2]: the images in each.

    Unmixed rows name their image twice. Partners are taken as they were before any mixing.
    """
    both = np.stack([sources, sources], 1)
    chosen = np.flatnonzero(generator.random(len(views)) < params.share)
    partners = generator.integers(0, len(views), len(chosen))
    before = {int(row): views[row].copy() for row in partners}
    for row, partner in zip(chosen.tolist(), partners.tolist(), strict=True):
        if sources[row] == sources[partner]:
            continue  # the same image: nothing to mix
        weight = float(generator.beta(params.alpha, params.alpha))  # of the row's own picture
        if generator.random() < params.cutmix:
            cut = _box(views.shape[1], 1 - weight, generator)
            views[row][cut] = before[partner][cut]
        else:
            blend = weight * views[row].astype(np.float32) + (1 - weight) * before[partner]
            views[row] = np.rint(blend).astype(np.uint8)
        both[row, 1] = sources[partner]
    return both


def _crop(rgb: RGB, params: EditParams, generator: np.random.Generator) -> RGB:
    """A part of ``rgb``: its share of the area uniform, its ratio log-uniform; a part that does not fit is clipped."""
    height, width = rgb.shape[:2]
    area = generator.uniform(*params.crop_scale) * height * width
    ratio = float(np.exp(generator.uniform(*np.log(params.crop_ratio))))
    w, h = min(width, max(1, round((area * ratio) ** 0.5))), min(height, max(1, round((area / ratio) ** 0.5)))
    top, left = int(generator.integers(0, height - h + 1)), int(generator.integers(0, width - w + 1))
    return rgb[top : top + h, left : left + w]


def _box(side: int, share: float, generator: np.random.Generator) -> tuple[slice, slice]:
    length = min(side, max(1, round(side * share**0.5)))
    top, left = (int(at) for at in generator.integers(0, side - length + 1, 2))
    return slice(top, top + length), slice(left, left + length)
