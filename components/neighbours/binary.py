"""Binary codes within a Hamming radius of each other, through FAISS: exact, in the number of pairs that are found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK = 65536  # queries at a time
_MULTI_FROM = 4096  # codes; below, comparing all is faster than hashing


def hamming_pairs(codes: npt.NDArray[np.uint8], radius: int) -> Iterator[tuple[npt.NDArray[np.int64], ...]]:
    """Pairs (i, j, distance) of rows of ``codes`` ``[N, B]`` with i < j and distance at most ``radius``, in blocks.

    Large sets go through multi-index hashing (``IndexBinaryMultiHash``; Norouzi et al. 2012) over ``radius + 1`` parts
    of the code: by the pigeonhole principle two codes that close agree in one of them, so no pair is missed.
    """
    import faiss

    bits, parts = 8 * codes.shape[1], radius + 1
    each = min(bits // parts, 64)
    # Short parts put all codes into few buckets: then every pair is compared anyway.
    multi = len(codes) >= _MULTI_FROM and each >= 16
    index: Any = faiss.IndexBinaryMultiHash(bits, parts, each) if multi else faiss.IndexBinaryFlat(bits)
    index.add(np.ascontiguousarray(codes))
    for start in range(0, len(codes), _BLOCK):
        block = np.ascontiguousarray(codes[start : start + _BLOCK])
        # FAISS takes what is nearer than the radius, not at it.
        limits, distances, found = index.range_search(block, radius + 1)
        ones = np.repeat(np.arange(start, start + len(block)), np.diff(limits).astype(np.int64))
        ordered = ones < found
        yield ones[ordered], found[ordered].astype(np.int64), distances[ordered].astype(np.int64)
