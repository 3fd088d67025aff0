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
from components.params import Strict
from components.progress import track

CANDIDATES = 64  # scored exactly for the nearest held-out image, where an index proposes them


class RelativeParams(Strict):
    """How held-out images are kept out."""

    threshold: float | Literal["calibrated"] = Field("calibrated")  # cosine; the paper: 0.45 with SSCD
    # Which edges tie the pool's images together here: "relative" (the paper's "same procedure") or "self", which
    # chains less where everything looks alike.
    within: Literal["self", "relative"] = "self"
    # Which images of each benchmark: "test", or "all" (the paper's appendix: train and test splits). With "all", images
    # that are in a benchmark's training side and in the pool are dropped too, so nothing can be retrieved by them.
    against: Literal["test", "all"] = "test"


class LeakMatches(NamedTuple):
    """Per row of the pool [N]: its nearest held-out image, and whether that is over the threshold: a leak."""

    reference: NDArray[np.int64]  # row among the held-out images; -1: none was found
    similarity: NDArray[np.float32]
    leaks: NDArray[np.bool_]
    view: NDArray[np.int16]  # of the pool's image that the similarity is of
    match_view: NDArray[np.int16]  # of the held-out image
    identical: NDArray[np.bool_]  # whether the bytes are the held-out image's: no descriptor was asked

    @staticmethod
    def none(count: int) -> LeakMatches:
        """Of a pool of ``count`` images where nothing is held out."""
        view = np.full(count, -1, np.int16)
        return LeakMatches(
            np.full(count, -1),
            np.full(count, -np.inf, np.float32),
            np.zeros(count, bool),
            view,
            view.copy(),
            np.zeros(count, bool),
        )


class HeldOut(NamedTuple):
    """Indexes over held-out images [M, R, d]."""

    views: Neighbours  # M * R rows
    whole: Neighbours  # M rows
    each: int  # R


def held_out_index(held_out: NDArray[Any], threshold: float, params: NeighbourParams) -> HeldOut:
    """Indexes over ``held_out`` [M, R, d], M > 0, as :func:`one_ended` says."""
    count, each, dim = held_out.shape
    views = held_out.reshape(-1, dim)
    whole = np.ascontiguousarray(held_out[:, 0])
    return HeldOut(
        Neighbours(views, one_ended(count * each, threshold, params)),
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


def match_held_out(pool: NDArray[Any], held_out: HeldOut, threshold: float) -> LeakMatches:
    """For each image of ``pool`` [N, R, d], the nearest of ``held_out``; -1 at cosine -1 where an index found none.

    Either may be the crop: whole pool images are compared with all views of held-out images, and the other way round.
    """
    count, each, dim = pool.shape
    similarity, found = held_out.views.search(pool[:, 0], 1)
    of_whole, reference, match_view = similarity[:, 0], found[:, 0] // held_out.each, found[:, 0] % held_out.each
    similarity, found = held_out.whole.search(pool.reshape(-1, dim), 1)
    of_views = similarity[:, 0].reshape(count, each)
    best = of_views.argmax(1)
    rows = np.arange(count)
    by_view = of_views[rows, best] > of_whole
    reference = np.where(by_view, found[:, 0].reshape(count, each)[rows, best], reference)
    similarity = np.maximum(np.where(by_view, of_views[rows, best], of_whole), -1)
    view, match_view = np.where(by_view, best, 0), np.where(by_view, 0, match_view)
    view[reference < 0] = match_view[reference < 0] = -1
    over = similarity > threshold
    return LeakMatches(
        reference, similarity, over, view.astype(np.int16), match_view.astype(np.int16), np.zeros(count, bool)
    )


def match_parts(
    rows: Rows,
    parts: Sequence[tuple[int, int]],
    held_out: Rows,
    threshold: float,
    params: NeighbourParams,
    executor: ExecutorParams,
) -> LeakMatches:
    """:func:`match_held_out` for descriptors in files, range of rows by range of rows over the executor."""
    if not len(held_out.open()):  # only queries are named: nothing to keep out
        return LeakMatches.none(len(rows.open()))
    match = partial(_match_part, rows, held_out, threshold, params)
    found = [*track(map_shards(match, parts, executor), "held-out images", len(parts), unit="parts")]
    _indexed.cache_clear()
    return LeakMatches(*(np.concatenate(column) for column in zip(*found, strict=True)))


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


def with_identical(matches: LeakMatches, identical: NDArray[np.int64]) -> LeakMatches:
    """``matches``, where a row with the bytes of held-out image ``identical`` [N] (-1: none) leaks that, at cosine 1.

    So what a descriptor says of it does not matter: one that is blind to a picture lets no held-out image pass.
    """
    same = identical >= 0
    return LeakMatches(
        np.where(same, identical, matches.reference),
        np.where(same, np.float32(1), matches.similarity),
        matches.leaks | same,
        np.where(same, np.int16(0), matches.view),
        np.where(same, np.int16(0), matches.match_view),
        same,
    )


def _match_part(
    rows: Rows, held_out: Rows, threshold: float, params: NeighbourParams, part: tuple[int, int]
) -> LeakMatches:
    return match_held_out(rows.open()[slice(*part)], _indexed(held_out, threshold, params), threshold)


@lru_cache(maxsize=1)
def _indexed(held_out: Rows, threshold: float, params: NeighbourParams) -> HeldOut:
    """The indexes, once a process."""
    return held_out_index(held_out.open(), threshold, params)


def leaking_components(labels: NDArray[np.integer[Any]], leaks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Per row [N]: the first row of its component that ``leaks`` [N], or -1 where none does."""
    found = np.full(len(labels), len(labels), np.int64)
    rows = np.flatnonzero(leaks)
    np.minimum.at(found, labels[rows], rows)
    found = found[labels]
    return np.where(found == len(labels), -1, found)
