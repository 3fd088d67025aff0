"""Propagation of masks through a video by the similarity of patches alone: nothing is trained (DAVIS, J and F).

As DINO does it (Jabri et al. 2020): each patch of a frame takes the labels of its most similar patches nearby, in the
first frame, whose mask is given, and in the frames just before it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from components.evaluation.dense.patch_labels import check_finite
from components.evaluation.dense.windows import shorter_side
from components.evaluation.features.patch_tokens import PatchExtractor, Reading
from components.evaluation.sets.dense_files import IGNORE
from components.evaluation.sets.video_set import VideoSet
from components.images.decode import RGB
from components.params import Seed, Strict
from components.progress import track

TOLERANCE = 0.008  # of the diagonal: how near a boundary must be, as DAVIS has it


class PropagationParams(Strict):
    """How labels are carried on. DINO: 480 px, 7 frames, a radius of 12 patches, 5 neighbours, temperature 0.1."""

    image_size: int = Field(ge=16, le=8192)  # px of the shorter side
    frames: int = Field(7, ge=0, le=1000)  # frames before this one that labels come from, beside the first
    radius: int = Field(12, ge=1, le=10_000)  # patches, along either axis
    neighbours: int = Field(5, ge=1, le=10_000)  # patches whose labels are weighted; DINO (arXiv 2104.14294)
    temperature: float = Field(0.1, gt=0, le=10)  # of the softmax over their cosines; DINO
    samples: int = Field(1000, ge=100, le=1_000_000)  # bootstrap resamples of the objects
    seed: Seed = 0


class ObjectScore(NamedTuple):
    """Of one object: the mean over the frames of the region's IoU (J) and of the boundary's F-measure; 0 ... 1."""

    region: float
    boundary: float


def follow(
    extractor: PatchExtractor, video: VideoSet, params: PropagationParams, device: torch.device | str = "cpu"
) -> list[ObjectScore]:
    """The quality of every object of every video, in order; the first and the last frame are not scored, as usual.

    Raises:
        VitrailError: a file cannot be read, or tokens are not finite.
    """
    found: list[ObjectScore] = []
    for rows in track(video.sequences, f"{video.name} videos", len(video.sequences), unit="videos"):
        first = video.mask(rows[0])
        objects = [number for number in np.unique(first).tolist() if number > 0]
        scores: list[list[ObjectScore]] = [[] for _ in objects]
        predicted = propagate(extractor, [video.pictures.images.rgb(row) for row in rows], first, params, device)
        for row, ours in list(zip(rows, predicted, strict=True))[1:-1]:
            truth = video.mask(row)
            known = truth != IGNORE
            for number, values in zip(objects, scores, strict=True):
                a, b = (ours == number) & known, (truth == number) & known
                values.append(ObjectScore(region_iou(a, b), boundary_f(a, b)))
        found += [ObjectScore(*np.mean(values, axis=0).tolist()) for values in scores if values]
    return found


def propagate(
    extractor: PatchExtractor,
    frames: Sequence[RGB],
    first: npt.NDArray[np.integer],
    params: PropagationParams,
    device: torch.device | str = "cpu",
) -> list[npt.NDArray[np.int64]]:
    """Masks [H, W] of all ``frames``, the first of them ``first``; class numbers as there."""
    given: npt.NDArray[np.int64] = np.asarray(first, np.int64)
    numbers = np.unique(given[given != IGNORE])
    tokens, grid = _tokens(extractor, frames[0], params.image_size, device)
    labels = _shares(given, numbers, grid, device)
    near = _near(grid, params.radius, device)
    kept: deque[tuple[Tensor, Tensor]] = deque(maxlen=params.frames or None)
    start = (tokens, labels)
    found = [given]
    for frame in frames[1:]:
        tokens, _ = _tokens(extractor, frame, params.image_size, device)
        known = [start, *kept]
        labels = _carried(tokens, known, near, params)
        if params.frames:
            kept.append((tokens, labels))
        found.append(numbers[_enlarged(labels, grid, given.shape)])
    return found


def _tokens(
    extractor: PatchExtractor, frame: RGB, side: int, device: torch.device | str
) -> tuple[Tensor, tuple[int, int]]:
    """Tokens of unit length [patches, D] of a whole frame, and its patches down and across."""
    patch = extractor.patch
    resized = shorter_side(frame, max(1, side // patch) * patch)
    rows, columns = (length // patch for length in resized.shape[:2])
    tokens = extractor.tokens(np.ascontiguousarray(resized[None, : rows * patch, : columns * patch]), Reading())[0]
    check_finite(tokens)
    return torch.nn.functional.normalize(torch.as_tensor(tokens, device=device), dim=1), (rows, columns)


def _shares(
    mask: npt.NDArray[np.integer], numbers: npt.NDArray[np.integer], grid: tuple[int, int], device: torch.device | str
) -> Tensor:
    """The share of each patch that each object covers, [patches, objects]."""
    layers = torch.from_numpy((mask[None] == numbers[:, None, None]).astype(np.float32))[None]
    shares = torch.nn.functional.interpolate(layers, grid, mode="area")[0]
    return shares.flatten(1).T.to(device)


def _near(grid: tuple[int, int], radius: int, device: torch.device | str) -> Tensor:
    """Whether two patches are within ``radius`` along both axes, [patches, patches]."""
    down, across = (torch.arange(length, device=device) for length in grid)
    places = torch.cartesian_prod(down, across)
    return ((places[:, None] - places[None]).abs() <= radius).all(2)


def _carried(tokens: Tensor, known: Sequence[tuple[Tensor, Tensor]], near: Tensor, params: PropagationParams) -> Tensor:
    """The labels [patches, objects] of ``tokens``, from the most similar patches of the ``known`` frames."""
    similar = torch.cat([(tokens @ theirs.T).masked_fill(~near, -math.inf) for theirs, _ in known], 1)
    most = min(params.neighbours, similar.shape[1])
    best, at = similar.topk(most, dim=1)
    weights = (best / params.temperature).softmax(1)
    every = torch.cat([labels for _, labels in known])
    return (weights[..., None] * every[at]).sum(1)


def _enlarged(labels: Tensor, grid: tuple[int, int], size: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """The place of the strongest object at every pixel; an object's strength is counted in shares of its most."""
    layers = labels.T.reshape(1, -1, *grid)
    layers = layers / layers.amax((2, 3), keepdim=True).clamp_min(1e-6)
    pixels = torch.nn.functional.interpolate(layers, size, mode="bilinear", align_corners=False)[0]
    found: npt.NDArray[np.int64] = pixels.argmax(0).cpu().numpy()
    return found


def region_iou(ours: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Intersection over union; 1 where both are empty."""
    either = int((ours | truth).sum())
    return float((ours & truth).sum() / either) if either else 1.0


def boundary_f(ours: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """F-measure of boundary pixels within :data:`TOLERANCE` of the other boundary; 1 where both are empty."""
    a, b = _boundary(ours), _boundary(truth)
    if not a.any() and not b.any():
        return 1.0
    if not a.any() or not b.any():
        return 0.0
    reach = math.ceil(TOLERANCE * math.hypot(*ours.shape))
    precision, recall = _within(a, b, reach), _within(b, a, reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _within(these: npt.NDArray[np.bool_], those: npt.NDArray[np.bool_], reach: int) -> float:
    from scipy.ndimage import distance_transform_edt

    return float((distance_transform_edt(~those)[these] <= reach).mean())


def _boundary(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels that differ from the one to the right, below, or both; at the picture's end from nothing."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    found: npt.NDArray[np.bool_] = (here ^ padded[:-1, 1:]) | (here ^ padded[1:, :-1]) | (here ^ padded[1:, 1:])
    return found
