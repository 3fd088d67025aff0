"""Segmentation by frozen patch tokens on a set of masks: a linear classifier, and the vote of nearest patches.

DINOv2's linear segmentation (arXiv 2304.07193, section 7.4) with the classifier of the online probe
(:func:`components.evaluation.dense.patch_labels.fit_patches`): it is fitted on patches with the label of their largest
area.
With ``pixels`` a second one is fitted on pixels, as the paper does (:mod:`components.evaluation.dense.pixel_heads`).
Pictures are read whole, by sliding windows; with several scales this is the paper's "+ms".
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from components.errors import VitrailError
from components.evaluation.dense.patch_labels import (
    check_finite,
    choose_patches,
    confusion,
    enlarge,
    fit_patches,
    patch_labels,
)
from components.evaluation.dense.pixel_heads import PixelFitParams, WindowSource, fit_segmentation
from components.evaluation.dense.windows import (
    Windows,
    join,
    nearest_to,
    random_window,
    shorter_size,
    smooth_to,
    windows,
)
from components.evaluation.features.extract import Rows
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.features.patch_tokens import PatchExtractor, Reading
from components.evaluation.image_level.knn import Bank
from components.evaluation.image_level.linear import LinearParams
from components.evaluation.sets.dense_set import DenseBenchmark
from components.evaluation.statistics.intervals import Interval
from components.images.decode import RGB
from components.params import NEUTRAL, Factor, Seed, Strict
from components.progress import track


class SegmentationParams(Strict):
    """How masks are predicted and scored."""

    image_size: int = Field(ge=16, le=8192)  # px of a window, and of the picture's shorter side at scale 1
    masks: int | None = Field(ge=16, le=65_536)  # px of the shorter side of the masks that are scored; null: the files'
    blocks: int = Field(1, ge=1, le=64)  # patch tokens of so many last blocks, joined
    scales: list[Factor] = Field([1.0], min_length=1)  # of the picture; their log-probabilities are averaged
    stride: int | None = Field(None, ge=1, le=8192)  # px between windows; null: two thirds of a window
    pictures: int = Field(2000, ge=1, le=10_000_000)  # training pictures that patches are taken from
    patches: int = Field(100_000, ge=10, le=100_000_000)  # labelled patches fitted at most, as many of each picture
    linear: LinearParams
    pixels: PixelFitParams | None = None  # the paper's way, fitted on pixels; null: not measured
    k: int | None = Field(30, ge=1, le=1_000_000)  # neighbours of the training-free vote; null: not measured
    temperature: float = Field(0.07, gt=0, le=10)
    samples: int = Field(1000, ge=100, le=1_000_000)  # bootstrap resamples of the pictures
    batch_size: Annotated[int, Field(ge=1, le=4096), NEUTRAL] = 16  # windows
    seed: Seed = 0


class Counts(NamedTuple):
    """Pixels of n pictures by class, each [n, classes]."""

    both: npt.NDArray[np.int64]  # predicted rightly
    truth: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]  # labelled pixels alone


def segment(
    extractor: PatchExtractor, pictures: DenseBenchmark, params: SegmentationParams, device: torch.device | str = "cpu"
) -> dict[str, Counts]:
    """``linear`` (fitted on patches), ``pixels`` (fitted on pixels) and ``knn``: what each predicts when held out.

    A class that no training patch has is never predicted: its IoU is 0 where the held-out masks show it. Of equal
    probabilities the smallest class number wins.

    Raises:
        VitrailError: a file cannot be read, training patches have fewer than two classes, or tokens are not finite.
    """
    size, reading = _size(params.image_size, extractor), Reading(params.blocks)
    tokens, labels, owners = _training(extractor, pictures, params, size, reading)
    classifier = fit_patches(tokens, labels, owners, params.linear)
    names = ["linear", *(["pixels"] if params.pixels else []), *(["knn"] if params.k else [])]
    head = None
    if params.pixels is not None:
        head = fit_segmentation(WindowSource(extractor, pictures, size, reading), params.pixels, device)
    bank = None if params.k is None else Bank.of(LabelledFeatures(tokens, labels), device)
    found: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in names}

    def levels(name: str, rows: Rows) -> npt.NDArray[np.float32]:
        if head is not None and name == "pixels":
            return head.levels(rows)
        if bank is None or name == "linear":
            return classifier.levels(rows, pictures.classes)
        votes = torch.cat([one.cpu() for (one,) in bank.votes(rows, [params.k or 1], params.temperature)]).numpy()
        return np.pad(votes, ((0, 0), (0, pictures.classes - votes.shape[1])))

    rows = pictures.test_rows.tolist()
    for row in track(rows, f"{pictures.name} segmentation", len(rows), unit="pictures"):
        rgb, mask = pictures.read(row)
        height, width = mask.shape
        shape = (height, width) if params.masks is None else shorter_size(height, width, params.masks)
        truth = nearest_to(mask, shape)
        total = {name: np.zeros((pictures.classes, *shape), np.float32) for name in found}
        for scale in params.scales:
            cut = windows(rgb, size, params.stride or max(1, size * 2 // 3), scale)
            read = _read(extractor, cut, reading, params.batch_size)
            for name, sums in total.items():
                grid = size // extractor.patch
                maps = [enlarge(levels(name, one), grid, size) for one in read]
                sums += smooth_to(join(maps, cut), shape)
        for name, sums in total.items():
            matrix = confusion(truth, sums.argmax(0), pictures.classes)
            found[name].append(np.stack([np.diag(matrix), matrix.sum(1), matrix.sum(0)]))
    return {name: Counts(*np.stack(parts).transpose(1, 0, 2)) for name, parts in found.items()}


def miou(counts: Counts, samples: int, seed: int, confidence: float = 0.95) -> Interval:
    """Mean IoU over all pixels of all pictures (0 ... 1), with a percentile bootstrap over the pictures."""
    every = np.stack(counts, 1).astype(np.float64)  # [n, 3, classes]
    generator, count = np.random.default_rng(seed), len(every)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=samples)
    drawn = [_mean_iou(np.tensordot(one, every, 1)) for one in weights]
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(_mean_iou(every.sum(0)), float(low), float(high))


def by_picture(counts: Counts) -> npt.NDArray[np.float64]:
    """Mean IoU of each picture by itself [n], NaN for one without a label: what two models are paired by."""
    every = np.stack(counts, 1).astype(np.float64)
    return np.array([_mean_iou(one) if one[1].any() else np.nan for one in every])


def pixel_accuracy(counts: Counts) -> float:
    """The share of labelled pixels that are right."""
    return float(counts.both.sum() / max(1, counts.truth.sum()))


def _mean_iou(sums: npt.NDArray[np.float64]) -> float:
    """Of ``sums`` [3, classes] as :class:`Counts` has them, by the rule of ``patch_labels.mean_iou``."""
    both, either = sums[0], sums[1] + sums[2] - sums[0]
    return float(np.mean(both[either > 0] / either[either > 0])) if (either > 0).any() else 0.0


def _size(side: int, extractor: PatchExtractor) -> int:
    return max(1, side // extractor.patch) * extractor.patch


def _read(extractor: PatchExtractor, cut: Windows, reading: Reading, batch: int) -> Rows:
    """Tokens of all windows, [n, g * g, D]."""
    starts = range(0, len(cut.squares), batch)
    found = np.concatenate([extractor.tokens(cut.squares[at : at + batch], reading) for at in starts])
    check_finite(found)
    return found


def _training(
    extractor: PatchExtractor, pictures: DenseBenchmark, params: SegmentationParams, size: int, reading: Reading
) -> tuple[Rows, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tokens [m, D] of labelled patches, their labels [m], and the picture each is from [m]."""
    generator = np.random.default_rng([params.seed, 0xDE25E])
    rows = np.sort(generator.permutation(pictures.train_rows)[: params.pictures]).tolist()
    each = max(1, params.patches // len(rows))
    tokens, labels, owners = [], [], []
    for number, row in enumerate(track(rows, f"{pictures.name} training", len(rows), unit="pictures")):
        rgb, mask = pictures.read(row)
        square, cut = random_window(rgb, mask, size, np.random.default_rng([params.seed, row]))
        known = patch_labels(np.asarray(cut)[None], size // extractor.patch, pictures.classes)
        (chosen,) = choose_patches(known, each, generator)
        if len(chosen):
            tokens.append(_one(extractor, square, reading)[chosen])
            labels.append(known[0][chosen])
            owners.append(np.full(len(chosen), number))
    if not tokens:
        raise VitrailError(f"{pictures.name}: no training picture has a labelled pixel")
    check_finite(*tokens)
    return np.concatenate(tokens), np.concatenate(labels), np.concatenate(owners)


def _one(extractor: PatchExtractor, square: RGB, reading: Reading) -> Rows:
    found: Rows = extractor.tokens(np.ascontiguousarray(square)[None], reading)[0]
    return found
