"""DINOv2's linear evaluation: one linear head for each learning rate and input, all trained in one pass.

The frozen network is run once an image; the heads are trained on its features (arXiv 2304.07193, appendix B; dinov2's
``eval/linear.py``): SGD with momentum, no weight decay, a cosine schedule to 0. Heads of the same input are one matrix
product. The loss is a softmax cross-entropy, whose gradient is written out: it is the same for every head.

Two differences from the paper: images are not augmented, since their features are kept; and a step may run over fewer
images than 128 on eight GPUs. The rates are scaled by the batch, as there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from components.errors import VitrailError
from components.params import Seed, Share, Strict

Rate = Annotated[float, Field(gt=0, le=1e6)]


class LinearGridParams(Strict):
    """The grid and its training."""

    rates: list[Rate] = Field(min_length=1)  # for a batch of 256; scaled by batch / 256
    blocks: list[Annotated[int, Field(ge=1, le=64)]] = [1, 4]  # class tokens of so many last blocks
    pooling: list[bool] = [False, True]  # with the mean patch token of the last block
    steps: int = Field(12_500, ge=1, le=10_000_000)
    batch: int = Field(1024, ge=1, le=1_000_000)  # images
    momentum: float = Field(0.9, ge=0, lt=1)
    held_out: Share = 0.1  # of the training side, by which the head is chosen
    seed: Seed = 0


@dataclass(frozen=True)
class Heads:
    """Predictions of every head: names in order, [H, M]."""

    names: list[str]
    predicted: npt.NDArray[np.int64]

    def right(self, truth: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Whether each head is right about each image, [H, M]."""
        found: npt.NDArray[np.bool_] = self.predicted == truth[None]
        return found


def train_heads(
    inputs: Mapping[str, npt.NDArray[np.floating]],
    labels: npt.NDArray[np.integer],
    tests: Mapping[str, npt.NDArray[np.floating]],
    params: LinearGridParams,
    device: torch.device | str = "cpu",
) -> Heads:
    """Train all heads on ``inputs`` (name -> [N, D]) and predict ``tests`` (the same names -> [M, D]).

    Every head sees the same batches. Features are taken as they are, not standardised, as in the paper.

    Raises:
        VitrailError: fewer than two classes, or features that are not finite.
    """
    classes = int(labels.max()) + 1 if len(labels) else 0
    if len(np.unique(labels)) < 2:
        raise VitrailError("linear grid: the training side has fewer than two classes")
    if not all(np.isfinite(part).all() for part in [*inputs.values(), *tests.values()]):
        raise VitrailError("linear grid: features hold NaN or infinity; the network they come from has diverged")
    rates = torch.tensor(params.rates, device=device) * (min(params.batch, len(labels)) / 256)
    truth = torch.as_tensor(np.asarray(labels, np.int64), device=device)
    names, predicted = [], []
    for name, rows in inputs.items():
        # Each input is as it would be alone: batches and first weights depend on the seed only.
        groups = HeadsOfOneInput(rows.shape[1], classes, rates, params, device)
        bank = torch.as_tensor(np.ascontiguousarray(rows, np.float32), device=device)
        for step, picked in enumerate(_batches(len(truth), params)):
            groups.step(bank[picked], truth[picked], 0.5 * (1 + math.cos(math.pi * step / params.steps)))
        names += [f"{name}, rate {rate:g}" for rate in params.rates]
        predicted.append(groups.predict(tests[name]))
    return Heads(names, np.concatenate(predicted))


def choose_head(heads: Heads, truth: npt.NDArray[np.integer]) -> int:
    """The head with most right predictions, the first of equals."""
    return int(heads.right(truth).sum(1).argmax())


class HeadsOfOneInput:
    """The heads of one input: as many as there are rates, their weights side by side."""

    def __init__(
        self, width: int, classes: int, rates: Tensor, params: LinearGridParams, device: torch.device | str
    ) -> None:
        generator = torch.Generator().manual_seed(params.seed)
        first = torch.randn(width, classes, generator=generator) * 0.01  # the same for every rate
        self._count, self._classes, self._momentum = len(rates), classes, params.momentum
        self._weights = first.to(device).repeat(1, len(rates))  # [D, R C]
        self._bias = torch.zeros(len(rates) * classes, device=device)
        self._rates = rates.repeat_interleave(classes)  # [R C]
        self._pace = torch.zeros_like(self._weights)
        self._bias_pace = torch.zeros_like(self._bias)

    def step(self, rows: Tensor, truth: Tensor, factor: float) -> None:
        """One step of SGD on [B, D] and [B]; rates are multiplied by ``factor``."""
        levels = torch.addmm(self._bias, rows, self._weights).view(len(rows), self._count, self._classes)
        slope = levels.softmax(2)
        slope[torch.arange(len(rows), device=rows.device), :, truth] -= 1
        flat = slope.view(len(rows), -1).div_(len(rows))
        # Beside the two products all is done in place: with 1,000 classes the weights are a hundred megabytes and more.
        self._pace.addmm_(rows.T, flat, beta=self._momentum)
        self._bias_pace.mul_(self._momentum).add_(flat.sum(0))
        self._weights.addcmul_(self._pace, self._rates, value=-factor)
        self._bias.addcmul_(self._bias_pace, self._rates, value=-factor)

    def predict(self, rows: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """Classes, [R, M]."""
        parts = []
        for start in range(0, len(rows), 4096):
            part = torch.as_tensor(np.ascontiguousarray(rows[start : start + 4096], np.float32))
            levels = torch.addmm(self._bias, part.to(self._weights.device), self._weights)
            parts.append(levels.view(len(part), self._count, self._classes).argmax(2).T.cpu())
        found: npt.NDArray[np.int64] = torch.cat(parts, 1).numpy()
        return found


def _batches(count: int, params: LinearGridParams) -> Iterator[Tensor]:
    """Rows of each step: passes over all rows, each in a new order; the last rows of a pass that fill no batch wait."""
    generator = torch.Generator().manual_seed(params.seed)
    batch = min(params.batch, count)
    order, at = torch.randperm(count, generator=generator), 0
    for _ in range(params.steps):
        if at + batch > count:
            order, at = torch.randperm(count, generator=generator), 0
        yield order[at : at + batch]
        at += batch
