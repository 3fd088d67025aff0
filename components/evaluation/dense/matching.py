"""Matching of patches: is the same spot found again in another view of a picture? It needs neither labels nor training.

Each held-out picture is shown twice: as it is, and turned, scaled, shifted and changed in brightness by a known draw.
Each patch centre of the first is sought in the second by the cosine of its token. A match is right when it is within
``alpha`` of the picture's side of the true spot: PCK, the measure of keypoint matching.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from components.evaluation.dense.patch_labels import check_finite
from components.evaluation.features.extract import Rows, square
from components.evaluation.features.patch_tokens import PatchExtractor, Reading
from components.evaluation.sets.labelled_set import Benchmark
from components.images.decode import RGB
from components.params import NEUTRAL, Factor, PositiveShare, Seed, Share, Strict
from components.progress import track


class MatchingParams(Strict):
    """The views and what is right."""

    image_size: int = Field(ge=16, le=8192)  # px of the square
    images: int = Field(200, ge=1, le=1_000_000)  # held-out pictures; all where there are fewer
    degrees: float = Field(30.0, ge=0, le=180)  # turned by up to so much either way
    scale: tuple[Factor, Factor] = (0.8, 1.25)
    shift: Share = 0.1  # of the side, either way
    brightness: Share = 0.2  # levels are multiplied by 1 plus or minus up to so much
    alpha: PositiveShare = 0.1  # of the side: how near a match must be
    samples: int = Field(1000, ge=100, le=1_000_000)  # bootstrap resamples of the pictures
    batch_size: Annotated[int, Field(ge=1, le=4096), NEUTRAL] = 16
    seed: Seed = 0


class View(NamedTuple):
    """A known change: the matrix [2, 2] and shift [2] from a point of the first picture to its spot in the second.

    Points are (x, y) in -1 ... 1 from the picture's middle.
    """

    turn: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]
    brightness: float


def draw_view(params: MatchingParams, generator: np.random.Generator) -> View:
    """A change by ``params``."""
    angle = math.radians(generator.uniform(-params.degrees, params.degrees))
    scale = math.exp(generator.uniform(*np.log(params.scale))) if params.scale[0] < params.scale[1] else params.scale[0]
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shift = 2 * params.shift * generator.uniform(-1, 1, 2)
    return View(turn, shift, 1 + params.brightness * generator.uniform(-1, 1))


def seen(rgb: RGB, view: View) -> RGB:
    """The square ``rgb`` as ``view`` shows it, black outside."""
    back = np.linalg.inv(view.turn)  # where a pixel of the second picture comes from
    theta = torch.from_numpy(np.concatenate([back, (-back @ view.shift)[:, None]], 1)).float()[None]
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].float()
    grid = torch.nn.functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    out = torch.nn.functional.grid_sample(pixels, grid, mode="bilinear", align_corners=False)[0] * view.brightness
    found: RGB = out.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(found)


def centres(grid: int) -> npt.NDArray[np.float64]:
    """(x, y) of the patches' centres in -1 ... 1, [grid * grid, 2], row by row."""
    at = (np.arange(grid) + 0.5) * 2 / grid - 1
    return np.stack([np.tile(at, grid), np.repeat(at, grid)], 1)


def match(
    extractor: PatchExtractor, benchmark: Benchmark, params: MatchingParams, device: torch.device | str = "cpu"
) -> npt.NDArray[np.float64]:
    """PCK (0 ... 1) of each picture, [n]; NaN for one whose patches all leave the view.

    Raises:
        VitrailError: a picture cannot be read, or tokens are not finite.
    """
    generator = np.random.default_rng([params.seed, 0x3A7C])
    rows = generator.permutation(np.flatnonzero(benchmark.test))[: params.images].tolist()
    views = [draw_view(params, generator) for _ in rows]  # the same for every network
    size = max(1, params.image_size // extractor.patch) * extractor.patch
    found = []
    starts = range(0, len(rows), params.batch_size)
    for start in track(starts, f"{benchmark.name} matching", len(starts), unit="batches"):
        part = slice(start, start + params.batch_size)
        first = np.stack([square(benchmark.images.rgb(row), size) for row in rows[part]])
        second = np.stack([seen(rgb, view) for rgb, view in zip(first, views[part], strict=True)])
        ours, theirs = (extractor.tokens(batch, Reading()) for batch in (first, second))
        check_finite(ours, theirs)
        found += [_pck(a, b, view, params.alpha, device) for a, b, view in zip(ours, theirs, views[part], strict=True)]
    return np.array(found)


def _pck(ours: Rows, theirs: Rows, view: View, alpha: float, device: torch.device | str) -> float:
    """The share of patches within view whose best match, the first of equals, is near enough."""
    points = centres(round(len(ours) ** 0.5))
    true = points @ view.turn.T + view.shift
    inside = (np.abs(true) < 1).all(1)
    if not inside.any():
        return math.nan
    a, b = (torch.nn.functional.normalize(torch.as_tensor(rows, device=device), dim=1) for rows in (ours, theirs))
    best = (a @ b.T).argmax(1).cpu().numpy()
    error = np.linalg.norm(points[best] - true, axis=1) / 2  # of the side
    return float((error[inside] <= alpha).mean())
