"""Relative dedup: no training image may copy a benchmark's held-out image (DINOv2 paper, section 3 and appendix A).

A component of the pool's copy graph that contains, or touches, a held-out image is dropped whole: what is close to a
copy is likely one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.dedup.copygraph import Rows
from components.executor import ExecutorParams, map_shards
from components.neighbours import NeighbourParams, knn
from components.params import Strict
from components.progress import track


class RelativeParams(Strict):
    """How held-out images are kept out."""

    threshold: float | Literal["calibrated"] = Field("calibrated")  # cosine; the paper: 0.45 with SSCD
    # Which edges tie the pool's images together here: "relative" (the paper's "same procedure") or "self", which
    # chains less where everything looks alike.
    within: Literal["self", "relative"] = "self"
    # Which images of each benchmark: "test", or "all" (the paper's appendix: train and test splits). With "all", images
    # that are in a benchmark's training side and in the pool are dropped too, so nothing can be retrieved by them.
    against: Literal["test", "all"] = "test"


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


def touching_parts(
    rows: Rows,
    parts: Sequence[tuple[int, int]],
    held_out: Rows,
    threshold: float,
    params: NeighbourParams,
    executor: ExecutorParams,
) -> Touch:
    """:func:`touching` for descriptors in files, range of rows by range of rows over the executor."""
    look = partial(_touching_part, rows, held_out, threshold, params)
    found = [*track(map_shards(look, parts, executor), "held-out images", len(parts), unit="parts")]
    return Touch(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _touching_part(
    rows: Rows, held_out: Rows, threshold: float, params: NeighbourParams, part: tuple[int, int]
) -> Touch:
    return touching(rows.open()[slice(*part)], held_out.open(), threshold, params)


def dropped_components(labels: NDArray[np.integer[Any]], touched: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Per row [N]: the first touched row of its component, or -1 where none is: the row that condemns it."""
    culprit = np.full(len(labels), len(labels), np.int64)
    rows = np.flatnonzero(touched)
    np.minimum.at(culprit, labels[rows], rows)
    found = culprit[labels]
    return np.where(found == len(labels), -1, found)
