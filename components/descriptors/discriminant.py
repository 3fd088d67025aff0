"""A copy descriptor without a network: oriented gradients and a thumbnail, projected by discriminant analysis.

Features: histograms of oriented gradients (Dalal & Triggs 2005) on a coarse grid beside a small gray thumbnail. The
projection is learned from the pool: edited views of one image vary within a class, images vary between classes; the
first kind of variation is whitened away, the strongest directions of the second are kept and whitened too. Closed
form, so the same pool gives the same descriptor, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.descriptors.views import ViewParams, random_view, squash
from components.descriptors.whiten import Whitening
from components.errors import VitrailError
from components.images.samples import RGB
from components.params import Strict
from components.progress import track


class HandcraftedFeatureParams(Strict):
    """What is measured on a picture."""

    side: int = Field(64, ge=16, le=8192)  # pixels of the squashed input
    orientations: int = Field(8, ge=2, le=1000)  # of gradients, over the whole circle
    grid: int = Field(8, ge=2, le=1000)  # cells a side of the gradient histograms
    thumbnail: int = Field(16, ge=2, le=8192)  # pixels a side of the thumbnail among the features


class DiscriminantParams(Strict):
    """How the projection is learned."""

    images: int = Field(20_000, ge=2, le=10**12)  # of the pool, at most
    views: int = Field(4, ge=1, le=1_000_000)  # edited views an image
    dim: int = Field(256, ge=2, le=65_536)  # of the descriptor; less where there are fewer images
    floor: float = Field(0.003, gt=0, le=1000.0)  # added to the within-class variances, relative to their mean


def features(pictures: Iterable[RGB], params: HandcraftedFeatureParams) -> NDArray[np.float32]:
    """[N, thumbnail^2 + orientations x grid^2] fp32 of pictures [side, side, 3] uint8."""
    return np.stack([_features(picture, params) for picture in pictures])


def fit_discriminant(
    thumbnails: RGB, measured: HandcraftedFeatureParams, edits: ViewParams, params: DiscriminantParams, seed: int
) -> Whitening:
    """The projection learned from ``thumbnails`` [N, s, s, 3] uint8 of the pool, s at least ``measured.side``.

    Raises:
        VitrailError: fewer than two images: nothing to tell apart.
    """
    count = len(thumbnails)
    if count < 2:
        raise VitrailError(f"copy descriptor: {count} image(s) to learn from; it needs two, or kind: thumbnail")
    generator = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    within: NDArray[np.float64] | None = None
    blocks = [thumbnails[start : start + 64] for start in range(0, count, 64)]
    for block in track(blocks, "copy descriptor: learning", unit="blocks of 64 images"):
        views = [squash(picture, measured.side) for picture in block]
        for _ in range(params.views):
            views += [random_view(picture, measured.side, edits.copy_crop, edits, generator) for picture in block]
        rows = features(views, measured).astype(np.float64).reshape(params.views + 1, len(block), -1)
        means.extend(rows.mean(0))
        apart = (rows - rows.mean(0)).reshape(-1, rows.shape[2])
        within = apart.T @ apart if within is None else within + apart.T @ apart
    assert within is not None
    within /= count * params.views
    centre = np.mean(means, 0)
    spread, axes = np.linalg.eigh(within)
    # Few views for many features leave the estimate full of holes; the floor fills them.
    shrinkage = params.floor + (len(within) / (count * params.views)) ** 2
    floor = shrinkage * float(np.trace(within)) / len(within)
    if floor <= 0:  # no edit changed anything: every picture is one flat colour
        return Whitening(np.zeros(len(centre), np.float32), np.eye(len(centre), params.dim, dtype=np.float32))
    shrink = axes / np.sqrt(np.clip(spread, 0, None) + floor)  # whitens what varies within a class
    between = (np.stack(means) - centre) @ shrink
    spread, axes = np.linalg.eigh(between.T @ between / count)
    kept = np.argsort(-spread)[: min(params.dim, count - 1)]  # no more directions than images differ in
    deviation = np.sqrt(np.clip(spread[kept], 0, None))
    if deviation[0] < 1e-6:  # all images alike: they stay alike
        return Whitening(np.zeros(len(centre), np.float32), np.eye(len(centre), params.dim, dtype=np.float32))
    projection = shrink @ (axes[:, kept] / np.maximum(deviation, 1e-3 * deviation[0]))
    return Whitening(centre.astype(np.float32), projection.astype(np.float32))


def _features(picture: RGB, params: HandcraftedFeatureParams) -> NDArray[np.float32]:
    import cv2

    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    gray = (gray - gray.mean()) / (gray.std() + 4)  # brightness and contrast are no part of a copy
    small = cv2.resize(gray, (params.thumbnail, params.thumbnail), interpolation=cv2.INTER_AREA).ravel()
    smooth = cv2.GaussianBlur(gray, (0, 0), 1.0)
    slopes = np.stack([cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)], -1)  # [s, s, 2]
    turn = 2 * np.pi * np.arange(params.orientations) / params.orientations
    energy = np.maximum(slopes @ np.stack([np.cos(turn), np.sin(turn)]).astype(np.float32), 0)
    local = cv2.blur(np.einsum("hwo,hwo->hw", energy, energy), (9, 9)).clip(0)  # rounding may leave it below zero
    energy /= (np.sqrt(local) + np.float32(0.1))[..., None]
    # At half size it costs a tenth; the blur makes cells overlap, so that small shifts matter less.
    half = cv2.resize(energy, (params.side // 2, params.side // 2), interpolation=cv2.INTER_AREA)
    half = cv2.GaussianBlur(half, (0, 0), params.side / params.grid / 5)
    cells = cv2.resize(half, (params.grid, params.grid), interpolation=cv2.INTER_AREA).ravel().clip(0)
    return np.concatenate([small * 4 / params.thumbnail, np.sqrt(cells)]).astype(np.float32)
