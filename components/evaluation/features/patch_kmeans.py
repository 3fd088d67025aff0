"""Features without a network: whitened random patches and k-means (Coates, Lee and Ng 2011).

Patches are normalised in brightness and contrast, whitened (ZCA) and compared with k-means centroids of random patches.
A patch's value for a centroid is by how much it is nearer than the mean distance ("triangle"). Values are summed over
the four quarters of the picture. On small sets this beats many a short training run, so it is a baseline to take
seriously: 79.6 % on CIFAR-10 with 4,000 centroids at 32 px.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator

from components.errors import VitrailError
from components.evaluation.features.extract import Extractor, Rows
from components.params import Seed, Strict

CONTRAST = 10.0  # added to a patch's variance (of 0 ... 255), as in the paper


class PatchKmeansParams(Strict):
    """What is fitted, on training images alone."""

    side: int = Field(32, ge=8, le=512)  # px of the picture
    patch: int = Field(6, ge=2, le=64)  # px
    stride: int = Field(2, ge=1, le=64)  # px between patches. The paper: 1
    centroids: int = Field(200, ge=2, le=100_000)
    patches: int = Field(20_000, ge=10, le=10_000_000)  # drawn to fit on
    whitening: float = Field(0.1, gt=0, le=1e6)  # added to eigenvalues
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits(self) -> PatchKmeansParams:
        if 2 * self.patch > self.side:
            raise ValueError(f"patch: {self.patch} px; at most half of side ({self.side} px)")
        return self


def fit_patch_kmeans(squares: npt.NDArray[np.uint8], params: PatchKmeansParams, crop: float = 1.0) -> Extractor:
    """The extractor fitted on ``squares``, uint8 [n, side, side, 3]; features are [B, 4 * centroids].

    Raises:
        VitrailError: there are fewer different patches than centroids.
    """
    from sklearn.cluster import MiniBatchKMeans

    generator = np.random.default_rng(params.seed)
    drawn = _normalised(torch.from_numpy(_random_patches(squares, params, generator)))
    mean = drawn.mean(0)
    values, axes = torch.linalg.eigh(torch.cov(drawn.T, correction=0))
    whiten = (axes * (values.clamp_min(0) + params.whitening).rsqrt()) @ axes.T
    white = ((drawn - mean) @ whiten).numpy()
    if len(np.unique(white.round(4), axis=0)) < params.centroids:
        raise VitrailError(
            f"patch k-means: fewer than {params.centroids} different patches in {len(squares)} training images; "
            "lower patch_kmeans.centroids"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = MiniBatchKMeans(params.centroids, n_init=1, max_iter=20, random_state=params.seed).fit(white)
    centroids = torch.from_numpy(found.cluster_centers_.astype(np.float32))

    return Extractor(params.side, crop, partial(_nearer, params, mean, whiten, centroids))


@torch.inference_mode()
def _nearer(
    params: PatchKmeansParams,
    mean: torch.Tensor,
    whiten: torch.Tensor,
    centroids: torch.Tensor,
    batch: npt.NDArray[np.uint8],
) -> Rows:
    pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float()
    grid = (params.side - params.patch) // params.stride + 1
    columns = torch.nn.functional.unfold(pixels, params.patch, stride=params.stride).transpose(1, 2)
    distances = torch.cdist((_normalised(columns.flatten(0, 1)) - mean) @ whiten, centroids)
    nearer = (distances.mean(1, keepdim=True) - distances).clamp_min(0).view(len(batch), grid, grid, -1)
    half = grid // 2
    quarters = [nearer[:, a, b].sum((1, 2)) for a in (slice(half), slice(half, None))
                for b in (slice(half), slice(half, None))]  # fmt: skip
    rows: Rows = torch.cat(quarters, 1).numpy()
    return rows


def _random_patches(
    squares: npt.NDArray[np.uint8], params: PatchKmeansParams, generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """[patches, 3 * patch * patch], channels first, as ``unfold`` lays them."""
    room = params.side - params.patch + 1
    rows = generator.integers(0, len(squares), params.patches)
    tops, lefts = generator.integers(0, room, (2, params.patches))
    windows = np.lib.stride_tricks.sliding_window_view(squares, (params.patch, params.patch), axis=(1, 2))
    found: npt.NDArray[np.float32] = windows[rows, tops, lefts].reshape(params.patches, -1).astype(np.float32)
    return found


def _normalised(patches: torch.Tensor) -> torch.Tensor:
    """Each patch with mean 0 and a contrast of about 1."""
    centred = patches - patches.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + CONTRAST).sqrt()
