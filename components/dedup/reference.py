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
    """For each row of ``pool`` [N, d], the nearest row of ``held_out`` [M, d], M > 0; exact, for M is small."""
    similarity, rows = knn(held_out, pool, 1, params.model_copy(update={"factory": "Flat"}))
    return Touch(rows[:, 0], similarity[:, 0], similarity[:, 0] > threshold)


def dropped_components(labels: NDArray[np.int64], touched: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Per row [N]: the first touched row of its component, or -1 where none is: the row that condemns it."""
    culprit = np.full(len(labels), len(labels), np.int64)
    rows = np.flatnonzero(touched)
    np.minimum.at(culprit, labels[rows], rows)
    found = culprit[labels]
    return np.where(found == len(labels), -1, found)
