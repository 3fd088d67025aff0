"""Heads fitted on pixels, as DINOv2 fits them: values of patches are enlarged to pixels, and the loss is taken there.

Segmentation (arXiv 2304.07193, section 7.4): batch normalisation and a 1 x 1 convolution of patch tokens, cross-entropy
of the enlarged logits at every labelled pixel. Depth: the head of :mod:`components.evaluation.dense.depth_head` with
the same normalisation, its expectation enlarged, the loss at every pixel with a depth. Each step reads fresh windows of
the training pictures at random places; with ``augment`` they are scaled, mirrored and recoloured, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from components.errors import VitrailError
from components.evaluation.dense.augment import DenseAugmentParams, augmented_window
from components.evaluation.dense.depth_head import DepthHead, expected, log_loss
from components.evaluation.dense.patch_labels import ABSENT, check_finite
from components.evaluation.dense.windows import random_window
from components.evaluation.features.extract import Rows
from components.evaluation.features.patch_tokens import PatchExtractor, Reading
from components.evaluation.sets.dense_files import IGNORE
from components.evaluation.sets.dense_set import DenseBenchmark
from components.images.decode import RGB
from components.params import Seed, Strict
from components.progress import track

FINER = 4  # times the patches' grid: where the expectation of depth is taken, as in the paper


class PixelFitParams(Strict):
    """Training of a head on pixels: AdamW, a linear warm-up, then linearly to 0."""

    rate: float = Field(1e-3, gt=0, le=1)  # at its peak. DINOv3 on ADE20K: 1e-3
    decay: float = Field(1e-3, ge=0, le=1)  # decoupled. DINOv3 on ADE20K: 1e-3
    steps: int = Field(ge=1, le=10_000_000)  # DINOv3 on ADE20K: 40,000
    warmup: int = Field(0, ge=0, le=10_000_000)  # steps. DINOv3 on ADE20K: 1,500
    batch: int = Field(16, ge=1, le=65_536)  # windows a step; DINOv3: 16
    augment: DenseAugmentParams | None = None  # of the windows; null: they are cut at random places, no more
    seed: Seed = 0


class PixelClassifier(NamedTuple):
    """Mean and deviation of tokens [D], weights [classes, D], biases [classes]; which classes were seen [classes]."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    seen: Tensor

    def levels(self, tokens: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Logits [m, classes] of ``tokens`` [m, D]; :data:`ABSENT` for a class that no fitted pixel has."""
        rows = torch.as_tensor(np.asarray(tokens, np.float32), device=self.mean.device)
        logits = (rows - self.mean) / self.std @ self.weight.T + self.bias
        found: npt.NDArray[np.float32] = torch.where(self.seen, logits, ABSENT).cpu().numpy()
        return found


class WindowSource(NamedTuple):
    """Where windows come from, and how their tokens are read."""

    extractor: PatchExtractor
    pictures: DenseBenchmark
    size: int  # px of a window, a multiple of the patch
    reading: Reading

    def batches(self, params: PixelFitParams) -> Iterator[tuple[Tensor, Tensor]]:
        """``params.steps`` times: tokens [B, D, g, g], and what is known at the pixels [B, S, S]."""
        generator = np.random.default_rng([params.seed, 0x91CE1])
        grid = self.size // self.extractor.patch
        for _ in range(params.steps):
            rows = generator.choice(self.pictures.train_rows, params.batch).tolist()
            cuts = [self._cut(row, params.augment, generator) for row in rows]
            tokens = self.extractor.tokens(np.stack([square for square, _ in cuts]), self.reading)
            check_finite(tokens)
            known = np.stack([np.asarray(values) for _, values in cuts])
            yield _planes(tokens, grid), torch.from_numpy(np.ascontiguousarray(known))

    def _cut(
        self, row: int, augment: DenseAugmentParams | None, generator: np.random.Generator
    ) -> tuple[RGB, npt.NDArray[Any]]:
        if augment is None:
            return random_window(*self.pictures.read(row), self.size, generator)
        hole = IGNORE if self.pictures.truth.kind == "segmentation" else np.nan
        return augmented_window(self.pictures.read(row), self.size, hole, augment, generator)


def fit_segmentation(
    source: WindowSource, params: PixelFitParams, device: torch.device | str = "cpu"
) -> PixelClassifier:
    """A linear map of tokens to the classes of ``source``, fitted on pixels.

    Raises:
        VitrailError: a file cannot be read, tokens are not finite, or no pixel that was drawn has a label.
    """
    classes = source.pictures.classes
    seen = torch.zeros(classes, dtype=torch.bool, device=device)

    def loss(logits: Tensor, known: Tensor) -> Tensor | None:
        labels = known.to(device, torch.int64)
        labelled = labels != IGNORE
        if not labelled.any():
            return None
        seen[labels[labelled].unique()] = True
        enlarged = nn.functional.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        return nn.functional.cross_entropy(enlarged, labels, ignore_index=IGNORE)

    norm, head = _fitted(source, classes, params, loss, device)
    if not seen.any():
        raise VitrailError(f"{source.pictures.name}: no training pixel that was drawn has a label")
    return PixelClassifier(*folded(norm, head), seen)


def fit_depth_on_pixels(
    source: WindowSource, bins: int, params: PixelFitParams, device: torch.device | str = "cpu"
) -> DepthHead:
    """A head of so many bins over the depths of ``source``, fitted on pixels.

    Raises:
        VitrailError: a file cannot be read, tokens are not finite, or no pixel that was drawn has a depth.
    """
    low, high = source.pictures.truth.depths
    edges = torch.linspace(low, high, bins + 1, device=device)
    centres, drawn = (edges[1:] + edges[:-1]) / 2, [0]

    def loss(logits: Tensor, known: Tensor) -> Tensor | None:
        truth = known.to(device, torch.float32)
        there = torch.isfinite(truth) & (truth >= low) & (truth <= high)
        drawn[0] += int(there.sum())
        if not there.any():
            return None
        finer = nn.functional.interpolate(logits, scale_factor=FINER, mode="bilinear", align_corners=False)
        metres = expected(finer, centres, dim=1)[:, None]
        metres = nn.functional.interpolate(metres, truth.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        return log_loss(metres[there], truth[there])

    norm, head = _fitted(source, bins, params, loss, device)
    if not drawn[0]:
        raise VitrailError(f"{source.pictures.name}: no training pixel has a depth between {low:g} and {high:g} m")
    return DepthHead(*folded(norm, head), centres)


def _fitted(
    source: WindowSource,
    outputs: int,
    params: PixelFitParams,
    loss: Callable[[Tensor, Tensor], Tensor | None],
    device: torch.device | str,
) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    norm: nn.BatchNorm2d | None = None
    name = f"{source.pictures.name}, fitting on pixels"
    batches: Iterable[tuple[Tensor, Tensor]] = track(source.batches(params), name, params.steps, unit="steps")
    for number, (tokens, known) in enumerate(batches):
        if norm is None:
            norm = nn.BatchNorm2d(tokens.shape[1], device=device)
            head = _drawn(tokens.shape[1], outputs, params.seed).to(device)
            every = [*norm.parameters(), *head.parameters()]
            optimizer = torch.optim.AdamW(every, lr=params.rate, weight_decay=params.decay)
            share = share_of(params)
        value = loss(head(norm(tokens.to(device))), known)
        if value is not None:
            for group in optimizer.param_groups:
                group["lr"] = params.rate * share(number)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    assert norm is not None
    return norm, head


def _drawn(width: int, outputs: int, seed: int) -> nn.Conv2d:
    """The convolution with weights of ``seed``; torch's own generator is not touched."""
    head: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, width, outputs, 1)
    assert head.bias is not None
    with torch.no_grad():
        head.weight.copy_(0.01 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed)))
        head.bias.zero_()
    return head


def share_of(params: PixelFitParams) -> Callable[[int], float]:
    """Step -> share of the rate."""

    def share(step: int) -> float:
        if step < params.warmup:
            return (step + 1) / (params.warmup + 1)
        return (params.steps - step) / max(1, params.steps - params.warmup)

    return share


def folded(norm: nn.BatchNorm2d, head: nn.Conv2d) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, deviation, weights and biases of the two layers as one linear map of standardised tokens."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert head.bias is not None
    weight = head.weight.detach()[:, :, 0, 0]
    bias = head.bias.detach() + weight @ norm.bias.detach()
    return norm.running_mean, (norm.running_var + norm.eps).sqrt(), weight * norm.weight.detach(), bias


def _planes(tokens: Rows, grid: int) -> Tensor:
    """Tokens [B, g * g, D] as planes [B, D, g, g]."""
    return torch.from_numpy(np.ascontiguousarray(tokens.transpose(0, 2, 1))).view(len(tokens), -1, grid, grid)
