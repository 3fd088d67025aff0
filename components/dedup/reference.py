"""Relative dedup: no training image may copy a benchmark's held-out image (DINOv2 paper, section 3 and appendix A).

A component of the pool's copy graph that contains, or touches, a held-out image is dropped whole: what is close to a
copy is likely one too.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.neighbours import NeighbourParams, knn
from components.params import Strict


class RelativeParams(Strict):
    """How held-out images are kept out."""

    threshold: float | Literal["calibrated"] = Field("calibrated")  # cosine; the paper: 0.45 with SSCD
    # Which edges tie the pool's images together here: "relative" (the paper's "same procedure") or "self", which
    # chains less where everything looks alike.
    within: Literal["self", "relative"] = "self"


class Touch(NamedTuple):
    """Per row of the pool: its nearest held-out image and whether that is over the threshold."""

    reference: NDArray[np.int64]  # [N] row among the held-out images
    similarity: NDArray[np.float32]  # [N]
    touched: NDArray[np.bool_]  # [N]


def touching(pool: NDArray[Any], held_out: NDArray[Any], threshold: float, params: NeighbourParams) -> Touch:
    """For each image of ``pool`` [N, R, d], the nearest of ``held_out`` [M, R, d], M > 0; exact, for M is small.

    Either may be the crop: whole pool images are compared with the held-out images' windows, and the other way round.
    """
    exact = params.model_copy(update={"factory": "Flat"})
    count, each, dim = pool.shape
    similarity, found = knn(held_out.reshape(-1, dim), pool[:, 0], 1, exact)
    of_whole = similarity[:, 0], found[:, 0] // each
    similarity, found = knn(held_out[:, 0], pool.reshape(-1, dim), 1, exact)
    of_windows = similarity[:, 0].reshape(count, each)
    best = of_windows.argmax(1)
    rows = np.arange(count)
    windowed = of_windows[rows, best] > of_whole[0]
    nearest = np.where(windowed, found[:, 0].reshape(count, each)[rows, best], of_whole[1])
    similarity = np.where(windowed, of_windows[rows, best], of_whole[0])
    return Touch(nearest, similarity, similarity > threshold)


def dropped_components(labels: NDArray[np.int64], touched: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Per row [N]: the first touched row of its component, or -1 where none is: the row that condemns it."""
    culprit = np.full(len(labels), len(labels), np.int64)
    rows = np.flatnonzero(touched)
    np.minimum.at(culprit, labels[rows], rows)
    found = culprit[labels]
    return np.where(found == len(labels), -1, found)
