"""Labels of patches, mean intersection over union, and a linear classifier on frozen patch tokens.

DINOv2's linear segmentation (arXiv 2304.07193, section 7.4) is batch normalisation and a 1 x 1 convolution on patch
tokens: a linear map of standardised tokens. Here that map is a logistic regression, fitted on labelled patches, whose
log-probabilities are enlarged to pixels as the protocol enlarges logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from components.errors import VitrailError
from components.evaluation.image_level.linear import LinearParams, choose_cost, fit
from components.evaluation.sets.dense_files import IGNORE

ABSENT = -1e4  # log-probability of a class that no fitted patch has


class DenseScore(NamedTuple):
    """Shares of 0 ... 1 over all labelled pixels, and the chosen cost."""

    miou: float
    accuracy: float
    cost: float


def patch_labels(masks: npt.NDArray[np.integer], grid: int, classes: int) -> npt.NDArray[np.int64]:
    """The class with the largest area in each patch, [n, grid * grid]; the smallest number of equals.

    Args:
        masks: [n, S, S], values 0 ... classes - 1 or :data:`IGNORE`; S a multiple of ``grid``.

    Pixels without a label do not count; a patch that has no others is :data:`IGNORE`.
    """
    count, side = masks.shape[0], masks.shape[1]
    patch = side // grid
    pixels = masks.reshape(count, grid, patch, grid, patch).transpose(0, 1, 3, 2, 4).reshape(-1, patch * patch)
    found = np.empty(len(pixels), np.int64)
    rows = max(1, 2**22 // classes)
    for start in range(0, len(pixels), rows):
        part = pixels[start : start + rows].astype(np.int64)
        known = part != IGNORE
        cells = (np.arange(len(part))[:, None] * classes + part)[known]
        areas = np.bincount(cells, minlength=len(part) * classes).reshape(len(part), classes)
        found[start : start + rows] = np.where(known.any(1), areas.argmax(1), IGNORE)
    return found.reshape(count, grid * grid)


def choose_patches(
    labels: npt.NDArray[np.int64], most: int, generator: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """For each picture of ``labels`` [n, patches] the labelled patches to fit on, about ``most / n`` of them."""
    each = max(1, most // len(labels))
    known = [np.flatnonzero(row != IGNORE) for row in labels]
    return [np.sort(generator.permutation(at)[:each]) for at in known]


def confusion(
    truth: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer], classes: int
) -> npt.NDArray[np.int64]:
    """How often each true class (row) was called each class (column), [classes, classes]; unlabelled ones left out."""
    known = truth != IGNORE
    cells = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def mean_iou(matrix: npt.NDArray[np.integer]) -> float:
    """Mean intersection over union of the classes that are there or were predicted, from a confusion matrix."""
    both = np.diag(matrix)
    either = matrix.sum(0) + matrix.sum(1) - both
    return float(np.mean(both[either > 0] / either[either > 0])) if (either > 0).any() else 0.0


class Patches(NamedTuple):
    """Labelled patches of pictures."""

    tokens: npt.NDArray[np.floating]  # [m, D]
    labels: npt.NDArray[np.integer]  # [m], classes
    pictures: npt.NDArray[np.integer]  # [m], the picture that each is from; one picture's stay in one fold


def dense_probe(
    train: Patches,
    held_out: npt.NDArray[np.floating],
    masks: npt.NDArray[np.integer],
    classes: int,
    params: LinearParams,
) -> DenseScore:
    """Fit on labelled patches, score on the pixels of other pictures.

    Args:
        train: fitted on; whole pictures are left out when the cost is chosen.
        held_out: [n, g * g, D], tokens of whole pictures.
        masks: [n, S, S], their pixels' classes or :data:`IGNORE`.

    Raises:
        VitrailError: tokens are not finite, or the fitted patches have fewer than two classes.
    """
    check_finite(train.tokens, held_out)
    classifier = fit_patches(*train, params)
    grid, side = round(held_out.shape[1] ** 0.5), masks.shape[1]
    matrix = np.zeros((classes, classes), np.int64)
    for tokens, mask in zip(held_out, masks, strict=True):
        levels = classifier.levels(tokens, classes)
        matrix += confusion(mask, enlarge(levels, grid, side).argmax(0), classes)
    return DenseScore(mean_iou(matrix), float(np.diag(matrix).sum() / max(1, matrix.sum())), classifier.cost)


class PatchClassifier(NamedTuple):
    """The fitted map, and its chosen cost."""

    model: Any
    cost: float

    def levels(self, tokens: npt.NDArray[np.floating], classes: int) -> npt.NDArray[np.float32]:
        """Log-probabilities [m, classes] of ``tokens`` [m, D]; :data:`ABSENT` for a class that no fitted patch has."""
        found = np.full((len(tokens), classes), ABSENT, np.float32)
        found[:, self.model.classes_] = self.model.predict_log_proba(tokens)
        return found


def check_finite(*tokens: npt.NDArray[np.floating]) -> None:
    """Refuse tokens of a network that has diverged."""
    if not all(np.isfinite(part).all() for part in tokens):
        raise VitrailError("dense probe: patch tokens hold NaN or infinity; the network they come from has diverged")


def fit_patches(
    train: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    pictures: npt.NDArray[np.integer],
    params: LinearParams,
) -> PatchClassifier:
    """The classifier of :func:`dense_probe`, fitted on all of ``train`` by the cost that whole pictures choose.

    Raises:
        VitrailError: the patches have fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
        raise VitrailError("dense probe: the labelled patches have fewer than two classes")
    cost = params.costs[0]
    if len(params.costs) > 1:
        cost, _ = choose_cost(train, labels, params, pictures)
    return PatchClassifier(fit(train, labels, cost, params.max_iterations), cost)


def enlarge(levels: npt.NDArray[np.floating], grid: int, side: int) -> npt.NDArray[np.float32]:
    """Values of patches [grid * grid, K] at every pixel, [K, side, side], bilinear between patch centres."""
    maps = torch.from_numpy(np.ascontiguousarray(levels.T, np.float32)).view(1, -1, grid, grid)
    found = torch.nn.functional.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
    pixels: npt.NDArray[np.float32] = found[0].numpy()
    return pixels
