"""Depth as the expectation over bins that a linear map of tokens chooses between.

DINOv2's linear depth (arXiv 2304.07193, section 7.4, after AdaBins and BinsFormer): 256 bins of equal width, their
logits through a ReLU and divided by their sum, and a loss of the logarithms that forgives most of a common factor. Here
the map is fitted on standardised tokens of single patches, each with the mean depth that it shows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from components.errors import VitrailError
from components.params import Seed, Strict

EPSILON = 1e-3  # metres added before a logarithm
FLOOR = 0.1  # added to each bin, so that no sum is zero
COMMON = 0.15  # weight of the squared mean difference in the loss


class HeadParams(Strict):
    """The head and its training: AdamW, a cosine schedule to 0."""

    bins: int = Field(256, ge=2, le=65_536)
    rate: float = Field(1e-3, gt=0, le=1)
    decay: float = Field(1e-4, ge=0, le=1)  # AdamW's, decoupled
    steps: int = Field(2000, ge=1, le=10_000_000)
    batch: int = Field(4096, ge=1, le=10_000_000)  # patches
    seed: Seed = 0


class DepthHead(NamedTuple):
    """Mean and deviation of tokens [D], weights [bins, D], biases [bins], and centres of bins [bins] in metres."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    centres: Tensor

    def logits(self, tokens: npt.NDArray[np.floating]) -> Tensor:
        """[m, bins] of ``tokens`` [m, D]."""
        rows = torch.as_tensor(np.asarray(tokens, np.float32), device=self.mean.device)
        return (rows - self.mean) / self.std @ self.weight.T + self.bias


def expected(logits: Tensor, centres: Tensor, dim: int = -1) -> Tensor:
    """Depths in metres of ``logits``, whose ``dim`` runs over the bins."""
    positive = logits.relu() + FLOOR
    shape = [-1 if axis == dim % logits.ndim else 1 for axis in range(logits.ndim)]
    return (positive * centres.view(shape)).sum(dim) / positive.sum(dim)


def log_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """The scale-aware logarithmic loss of depths in metres (Eigen et al. 2014)."""
    gap = torch.log(predicted + EPSILON) - torch.log(truth + EPSILON)
    return (gap.var(correction=0) + COMMON * gap.mean().square() + 1e-12).sqrt()


def fit_depth(
    tokens: npt.NDArray[np.floating],
    depths: npt.NDArray[np.floating],
    span: tuple[float, float],
    params: HeadParams,
    device: torch.device | str = "cpu",
) -> DepthHead:
    """A head fitted on ``tokens`` [m, D] with ``depths`` [m] in metres; bins divide ``span`` evenly.

    Raises:
        VitrailError: no patches, or tokens that are not finite.
    """
    if not len(tokens) or len(tokens) != len(depths):
        raise VitrailError(f"depth: {len(tokens)} patches with {len(depths)} depths to fit on")
    if not np.isfinite(tokens).all():
        raise VitrailError("depth: patch tokens hold NaN or infinity; the network they come from has diverged")
    generator = torch.Generator().manual_seed(params.seed)
    rows = torch.as_tensor(np.asarray(tokens, np.float32), device=device)
    truth = torch.as_tensor(np.asarray(depths, np.float32), device=device)
    mean, std = rows.mean(0), rows.std(0, correction=0).clamp_min(1e-6)
    weight = (0.01 * torch.randn(params.bins, rows.shape[1], generator=generator)).to(device).requires_grad_()
    bias = torch.zeros(params.bins, device=device, requires_grad=True)
    edges = torch.linspace(*span, params.bins + 1, device=device)
    centres = (edges[1:] + edges[:-1]) / 2
    optimizer = torch.optim.AdamW([weight, bias], lr=params.rate, weight_decay=params.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, params.steps)
    for _ in range(params.steps):
        at = torch.randint(len(rows), (min(params.batch, len(rows)),), generator=generator).to(device)
        logits = (rows[at] - mean) / std @ weight.T + bias
        optimizer.zero_grad()
        log_loss(expected(logits, centres), truth[at]).backward()
        optimizer.step()
        schedule.step()
    return DepthHead(mean, std, weight.detach(), bias.detach(), centres)


class DepthErrors(NamedTuple):
    """Of one picture: root mean square error in metres, mean relative error, and share within a factor of 1.25."""

    rmse: float
    abs_rel: float
    delta1: float


def depth_errors(
    predicted: npt.NDArray[np.floating], truth: npt.NDArray[np.floating], span: tuple[float, float]
) -> DepthErrors | None:
    """The errors over the pixels whose true depth is known and within ``span``; None where there are none.

    Predictions are brought into ``span`` first, as is usual.
    """
    with np.errstate(invalid="ignore"):
        known = np.isfinite(truth) & (truth >= span[0]) & (truth <= span[1])
    if not known.any():
        return None
    true, ours = truth[known].astype(np.float64), np.clip(predicted[known].astype(np.float64), *span)
    ratio = np.maximum(ours / true, true / ours)
    return DepthErrors(
        float(np.sqrt(np.mean((ours - true) ** 2))),
        float(np.mean(np.abs(ours - true) / true)),
        float(np.mean(ratio < 1.25)),
    )
