"""Linear depth on a set of depth maps: the paper's lin. 1 and lin. 4."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from components.errors import VitrailError
from components.evaluation.dense.depth_head import DepthErrors, DepthHead, HeadParams, depth_errors, expected, fit_depth
from components.evaluation.dense.pixel_heads import FINER, PixelFitParams, WindowSource, fit_depth_on_pixels
from components.evaluation.dense.windows import join, random_window, smooth_to, windows
from components.evaluation.features.extract import Rows
from components.evaluation.features.patch_tokens import PatchExtractor, Reading
from components.evaluation.sets.dense_set import DenseBenchmark
from components.params import NEUTRAL, Seed, Strict
from components.progress import track


class DepthHeadParams(Strict):
    """How depths are predicted and scored."""

    image_size: int = Field(ge=16, le=8192)  # px of a window, and of the picture's shorter side
    blocks: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [1, 4], min_length=1
    )  # evenly spread; the last, the paper's 4
    stride: int | None = Field(None, ge=1, le=8192)  # px between windows; null: two thirds of a window
    pictures: int = Field(2000, ge=1, le=10_000_000)  # training pictures that patches are taken from
    patches: int = Field(100_000, ge=10, le=100_000_000)  # patches fitted at most, as many of each picture
    head: HeadParams = HeadParams()
    pixels: PixelFitParams | None = None  # also fitted on pixels, with the head's bins; null: not measured
    samples: int = Field(1000, ge=100, le=1_000_000)  # bootstrap resamples of the pictures
    batch_size: Annotated[int, Field(ge=1, le=4096), NEUTRAL] = 16  # windows
    seed: Seed = 0


def estimate_depth(
    extractor: PatchExtractor, pictures: DenseBenchmark, params: DepthHeadParams, device: torch.device | str = "cpu"
) -> dict[str, npt.NDArray[np.float64]]:
    """``lin1``, ``lin4`` ... -> [n, 3]: RMSE, relative error and share within 1.25 of each held-out picture.

    With ``params.pixels`` also ``lin1pixels`` and so on, fitted on pixels. A hole counts nowhere; a picture without any
    depth has NaN.

    Raises:
        VitrailError: a file cannot be read, no patch has a depth, no held-out pixel has one, or tokens are not finite.
    """
    found = {}
    for count in params.blocks:
        size = max(1, params.image_size // extractor.patch) * extractor.patch
        reading = Reading(count, spread=True, norm=count == 1, cls=True)
        source = WindowSource(extractor, pictures, size, reading)
        found[f"lin{count}"] = _scored(source, _fitted(source, params, device), params)
        if params.pixels is not None:
            head = fit_depth_on_pixels(source, params.head.bins, params.pixels, device)
            found[f"lin{count}pixels"] = _scored(source, head, params)
    return found


def _scored(source: WindowSource, head: DepthHead, params: DepthHeadParams) -> npt.NDArray[np.float64]:
    """The errors [n, 3] of ``head`` on the held-out pictures."""
    extractor, pictures, size, reading = source
    span, found = pictures.truth.depths, []
    rows = pictures.test_rows.tolist()
    for row in track(rows, f"{pictures.name} depth, {reading.blocks} blocks", len(rows), unit="pictures"):
        rgb, truth = pictures.read(row)
        cut = windows(rgb, size, params.stride or max(1, size * 2 // 3))
        maps = []
        for start in range(0, len(cut.squares), params.batch_size):
            tokens = extractor.tokens(cut.squares[start : start + params.batch_size], reading)
            maps += [depth_map(head, one, size // extractor.patch, size) for one in tokens]
        errors = depth_errors(smooth_to(join(maps, cut), truth.shape)[0], truth, span)
        found.append(errors or DepthErrors(np.nan, np.nan, np.nan))
    values = np.array(found, np.float64)
    if np.isnan(values).all():
        raise VitrailError(f"{pictures.name}: no held-out pixel has a depth between {span[0]:g} and {span[1]:g} m")
    return values


def depth_map(head: DepthHead, tokens: Rows, grid: int, side: int) -> npt.NDArray[np.float32]:
    """Depths [1, side, side] in metres of a square's ``tokens`` [grid * grid, D]."""
    logits = head.logits(tokens).T.reshape(1, -1, grid, grid)
    finer = torch.nn.functional.interpolate(logits, scale_factor=FINER, mode="bilinear", align_corners=False)
    metres: npt.NDArray[np.float32] = expected(finer, head.centres, dim=1).cpu().numpy()
    return smooth_to(metres, (side, side))


def _fitted(source: WindowSource, params: DepthHeadParams, device: torch.device | str) -> DepthHead:
    """A head fitted on patches."""
    extractor, pictures, size, reading = source
    generator = np.random.default_rng([params.seed, 0xDE97])
    rows = np.sort(generator.permutation(pictures.train_rows)[: params.pictures]).tolist()
    each, span = max(1, params.patches // len(rows)), pictures.truth.depths
    tokens, depths = [], []
    for row in track(rows, f"{pictures.name} training", len(rows), unit="pictures"):
        square, truth = random_window(*pictures.read(row), size, np.random.default_rng([params.seed, row]))
        known = patch_depths(np.asarray(truth, np.float32), size // extractor.patch, span)
        chosen = np.sort(generator.permutation(np.flatnonzero(np.isfinite(known)))[:each])
        if len(chosen):
            tokens.append(extractor.tokens(np.ascontiguousarray(square)[None], reading)[0][chosen])
            depths.append(known[chosen])
    if not tokens:
        raise VitrailError(f"{pictures.name}: no training picture has a depth between {span[0]:g} and {span[1]:g} m")
    return fit_depth(np.concatenate(tokens), np.concatenate(depths), span, params.head, device)


def patch_depths(truth: npt.NDArray[np.float32], grid: int, span: tuple[float, float]) -> npt.NDArray[np.float32]:
    """The mean depth [grid * grid] that each patch of ``truth`` [S, S] shows; NaN where it is all holes."""
    patch = truth.shape[0] // grid
    pixels = truth.reshape(grid, patch, grid, patch).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    with np.errstate(invalid="ignore"):
        known = np.isfinite(pixels) & (pixels >= span[0]) & (pixels <= span[1])
    counts = known.sum(1)
    sums = np.where(known, pixels, 0).sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)
