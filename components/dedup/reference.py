"""Relative dedup: no training image may copy a benchmark's held-out image (DINOv2 paper, section 3 and appendix A).

A component of the pool's copy graph that contains, or touches, a held-out image is dropped whole: what is close to a
copy is likely one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from components.descriptors.rows import Rows
from components.executor import ExecutorParams, map_shards
from components.neighbours import NeighbourParams, Neighbours
from components.params import Cosine, Strict
from components.progress import track

CANDIDATES = 64  # scored exactly for the nearest held-out image, where an index proposes them


class RelativeParams(Strict):
    """How held-out images are kept out."""

    threshold: Cosine | Literal["auto", "calibrated"] = Field("auto")  # cosine; the paper: 0.45 with SSCD
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


class HeldOut(NamedTuple):
    """Indexes over held-out images [M, R, d]."""

    windows: Neighbours  # M * R rows, whole images and windows
    whole: Neighbours  # M rows
    each: int  # R


def held_out_index(held_out: NDArray[Any], threshold: float, params: NeighbourParams) -> HeldOut:
    """Indexes over ``held_out`` [M, R, d], M > 0, as :func:`one_ended` says."""
    count, each, dim = held_out.shape
    windows = held_out.reshape(-1, dim)
    whole = np.ascontiguousarray(held_out[:, 0])
    return HeldOut(
        Neighbours(windows, one_ended(count * each, threshold, params)),
        Neighbours(whole, one_ended(count, threshold, params)),
        each,
    )


def one_ended(rows: int, threshold: float, params: NeighbourParams) -> NeighbourParams:
    """How ``rows`` held-out descriptors are searched: exactly up to ``exact_held_out``, for a miss is a leak.

    Above, by the index that ``params`` say, set to find the share ``edge_recall`` of the pairs at the ``threshold``
    itself. A pair is found from one end here, not from either: 1 - (1 - r)^2 of both ends is r of one. And the nearest
    alone is wanted, so many candidates are scored exactly for it.
    """
    if rows <= params.exact_held_out:
        return params.model_copy(update={"factory": "Flat"})
    return params.model_copy(
        update={
            "edge_cosine": min(max(threshold, 0.01), 0.99),
            "edge_recall": 1 - (1 - params.edge_recall) ** 2,
            "candidates": max(params.candidates, CANDIDATES),
        }
    )


def touching(pool: NDArray[Any], held_out: HeldOut, threshold: float) -> Touch:
    """For each image of ``pool`` [N, R, d], the nearest of ``held_out``; -1 at cosine -1 where an index found none.

    Either may be the crop: whole pool images are compared with the held-out images' windows, and the other way round.
    """
    count, each, dim = pool.shape
    similarity, found = held_out.windows.search(pool[:, 0], 1)
    of_whole = similarity[:, 0], found[:, 0] // held_out.each
    similarity, found = held_out.whole.search(pool.reshape(-1, dim), 1)
    of_windows = similarity[:, 0].reshape(count, each)
    best = of_windows.argmax(1)
    rows = np.arange(count)
    windowed = of_windows[rows, best] > of_whole[0]
    nearest = np.where(windowed, found[:, 0].reshape(count, each)[rows, best], of_whole[1])
    similarity = np.maximum(np.where(windowed, of_windows[rows, best], of_whole[0]), -1)
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
    if not len(held_out.open()):  # only queries are named: nothing to keep out
        count = len(rows.open())
        return Touch(np.full(count, -1), np.full(count, -1, np.float32), np.zeros(count, bool))
    look = partial(_touching_part, rows, held_out, threshold, params)
    found = [*track(map_shards(look, parts, executor), "held-out images", len(parts), unit="parts")]
    _indexed.cache_clear()
    return Touch(*(np.concatenate(column) for column in zip(*found, strict=True)))


def identical_rows(table: pa.Table, held_out: Sequence[str]) -> NDArray[np.int64]:
    """Per row of ``table`` (``tables.INDEX``) the held-out image with the same bytes, -1 where none has them.

    ``held_out`` [M] are SHA-256 digests (hex). Bytes count as crawled and as stored, for a blurred face changes them.
    """
    place = {digest: number for number, digest in reversed(list(enumerate(held_out)))}
    found = np.full(len(table), -1, np.int64)
    for column in ("stored_sha256", "sha256"):
        rows = np.array([place.get(digest, -1) for digest in table[column].to_pylist()], np.int64).reshape(len(table))
        found = np.where(rows >= 0, rows, found)
    return found


def with_identical(touch: Touch, identical: NDArray[np.int64]) -> Touch:
    """``touch``, where a row with the bytes of held-out image ``identical`` [N] (-1: none) touches that, at cosine 1.

    So what a descriptor says of it does not matter: one that is blind to a picture lets no held-out image pass.
    """
    same = identical >= 0
    return Touch(
        np.where(same, identical, touch.reference),
        np.where(same, np.float32(1), touch.similarity),
        touch.touched | same,
    )


def _touching_part(
    rows: Rows, held_out: Rows, threshold: float, params: NeighbourParams, part: tuple[int, int]
) -> Touch:
    return touching(rows.open()[slice(*part)], _indexed(held_out, threshold, params), threshold)


@lru_cache(maxsize=1)
def _indexed(held_out: Rows, threshold: float, params: NeighbourParams) -> HeldOut:
    """The indexes, once a process."""
    return held_out_index(held_out.open(), threshold, params)


def dropped_components(labels: NDArray[np.integer[Any]], touched: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Per row [N]: the first touched row of its component, or -1 where none is: the row that condemns it."""
    culprit = np.full(len(labels), len(labels), np.int64)
    rows = np.flatnonzero(touched)
    np.minimum.at(culprit, labels[rows], rows)
    found = culprit[labels]
    return np.where(found == len(labels), -1, found)
