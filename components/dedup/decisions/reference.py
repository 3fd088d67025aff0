"""Relative dedup: no training image may copy a benchmark's held-out image (DINOv2 paper, section 3 and appendix A).

A component of the pool's copy graph that contains, or touches, a held-out image is dropped whole: what is close to a
copy is likely one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from components.dedup.copy_graph.graph import STRIDE
from components.dedup.decisions.files import ColumnWriter, JoinFiles
from components.dedup.pool.images import Pool
from components.descriptors.rows import DescriptorRows
from components.executor import ExecutorParams, map_shards
from components.neighbours import NeighbourParams, Neighbours
from components.params import Cosine, Strict
from components.progress import track
from components.storage import atomic_file

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


@dataclass(frozen=True)
class HeldOutImages:
    """The benchmarks' images that must not be trained on; none without benchmarks."""

    rows: NDArray[np.float16]  # [M, R, dim]
    keys: list[str]  # [M]
    digests: list[str]  # [M] SHA-256 (hex) of their files


class Nearest(NamedTuple):
    """Per row of a range of the pool [n]: its nearest held-out image."""

    reference: NDArray[np.int64]  # row among the held-out images; -1: none was found
    similarity: NDArray[np.float32]
    view: NDArray[np.int16]  # of the pool's image that the similarity is of
    match_view: NDArray[np.int16]  # of the held-out image

    def part(self, start: int, stop: int) -> Nearest:
        """Of the rows ``start`` to ``stop`` of the range."""
        rows = slice(start, stop)
        return Nearest(self.reference[rows], self.similarity[rows], self.view[rows], self.match_view[rows])


class HeldOutIndexes(NamedTuple):
    """Indexes over held-out images [M, R, d]."""

    views: Neighbours  # M * R rows
    whole: Neighbours  # M rows
    each: int  # R


def held_out_index(held_out: NDArray[Any], threshold: float, params: NeighbourParams) -> HeldOutIndexes:
    """Indexes over ``held_out`` [M, R, d], M > 0, as :func:`one_ended` says."""
    count, each, dim = held_out.shape
    views = held_out.reshape(-1, dim)
    whole = np.ascontiguousarray(held_out[:, 0])
    return HeldOutIndexes(
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


def nearest_held_out(pool: NDArray[Any], held_out: HeldOutIndexes) -> Nearest:
    """For each image of ``pool`` [n, R, d], the nearest of ``held_out``; -1 at cosine -1 where an index found none.

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
    return Nearest(reference, similarity, view.astype(np.int16), match_view.astype(np.int16))


def find_leaks(
    pool: Pool,
    rows: DescriptorRows,
    parts: Sequence[tuple[int, int]],
    held_out: HeldOutImages,
    how: LeakSearch,
    files: JoinFiles,
) -> None:
    """Write the pool's leaks to ``files.leaks``, and every row's cosine to its nearest held-out image beside it.

    A row with the bytes of a held-out image, as crawled or as stored (a blurred face changes them), leaks that image at
    cosine 1 whatever a descriptor says: one that is blind to a picture lets no held-out image pass.
    """
    similarity = np.lib.format.open_memmap(files.to_held_out, "w+", np.float32, (len(pool),))
    at = files.folder / "held-out.npy"
    with atomic_file(at) as file:  # always anew: a benchmark's pictures may change under their keys
        np.save(file, held_out.rows, allow_pickle=False)
    match = partial(_match_part, rows, DescriptorRows(at), how)
    found = map_shards(match, parts, how.executor) if len(held_out.rows) else (None for _ in parts)
    with ColumnWriter(files.leaks, LEAKS) as writer:
        done = track(found, "held-out images", len(parts), unit="parts")
        for (start, stop), nearest in zip(parts, done, strict=True):
            for begin in range(start, stop, STRIDE):
                end = min(begin + STRIDE, stop)
                near = nothing_near(begin, end)
                if nearest is not None:
                    near = nearest.part(begin - start, end - start)
                same = identical_rows(pool.slice(begin, end, ["stored_sha256", "sha256"]), held_out.digests)
                similarity[begin:end] = np.where(same >= 0, np.float32(1), near.similarity)
                leaks = np.flatnonzero((same >= 0) | (near.similarity > how.threshold))
                own = same[leaks] >= 0
                writer.write(
                    row=begin + leaks,
                    reference=np.where(own, same[leaks], near.reference[leaks]),
                    similarity=similarity[begin:end][leaks],
                    view=np.where(own, 0, near.view[leaks]),
                    match_view=np.where(own, 0, near.match_view[leaks]),
                    identical=own,
                )
    similarity.flush()
    _indexed.cache_clear()


LEAKS = ("row", "reference", "similarity", "view", "match_view", "identical")


class LeakSearch(NamedTuple):
    """How held-out images are looked for."""

    threshold: float  # cosine over which an image leaks
    neighbours: NeighbourParams
    executor: ExecutorParams


def nothing_near(start: int, stop: int) -> Nearest:
    """Of rows ``start`` to ``stop``, where nothing is held out."""
    count = stop - start
    view = np.full(count, -1, np.int16)
    return Nearest(np.full(count, -1), np.full(count, -np.inf, np.float32), view, view)


def identical_rows(table: pa.Table, held_out: Sequence[str]) -> NDArray[np.int64]:
    """Per row of ``table`` (columns ``sha256``, ``stored_sha256``) the held-out image with the same bytes; -1: none.

    ``held_out`` [M] are SHA-256 digests (hex).
    """
    known = pa.array(held_out, pa.string())
    found = np.full(len(table), -1, np.int64)
    for column in ("stored_sha256", "sha256"):
        places = pc.index_in(table[column].combine_chunks(), known)
        rows = places.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        found = np.where(rows >= 0, rows, found)
    return found


def _match_part(rows: DescriptorRows, held_out: DescriptorRows, how: LeakSearch, part: tuple[int, int]) -> Nearest:
    return nearest_held_out(rows.open()[slice(*part)], _indexed(held_out, how.threshold, how.neighbours))


@lru_cache(maxsize=1)
def _indexed(held_out: DescriptorRows, threshold: float, params: NeighbourParams) -> HeldOutIndexes:
    """The indexes, once a process."""
    return held_out_index(held_out.open(), threshold, params)
