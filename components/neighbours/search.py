"""Neighbours by cosine: candidates from an index, scored again with the exact descriptors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import VitrailError
from components.neighbours import index as indexes
from components.neighbours.checks import ROWS, check_descriptors, fp32
from components.neighbours.factory import factory_for, probes_for
from components.neighbours.params import NeighbourParams

MOST = 2048  # candidates a query, unless k is more: FAISS' limit on a GPU
FIRST_ROUND = 16  # candidates scored exactly before a query with a floor may be given up


def knn(
    base: NDArray[Any], queries: NDArray[Any], k: int, params: NeighbourParams
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ``k`` rows of ``base`` with the largest inner product (cosine, for L2-normalised rows) with each query.

    Args:
        base: [N, d] floating, L2-normalised; may be a memory-mapped fp16 file: it is read in blocks.
        queries: [M, d] floating, L2-normalised.
        k: neighbours a query, at most N.
        params: index and memory.

    Returns:
        similarities [M, k] float32, descending, and row numbers in ``base`` [M, k] int64, equal similarities by
        ascending row. A coded index may find fewer than k; the rest are similarity -inf and row -1.

    Raises:
        VitrailError: NaN, infinite or zero rows, shapes that do not fit, k over N, or too few rows to train the index.
    """
    return Neighbours(base, params).search(queries, k)


def exact_knn(
    base: NDArray[Any], queries: NDArray[Any], k: int, params: NeighbourParams
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As :func:`knn`, exactly, reading ``base`` once in blocks: for few queries, and a base larger than memory."""
    exact = params.model_copy(update={"factory": "Flat"})
    similarities = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    if not 1 <= k <= len(base):
        raise VitrailError(f"neighbours: k={k} of {len(base)} descriptors; choose k between 1 and {len(base)}")
    for start in range(0, len(base), ROWS):
        block = base[start : start + ROWS]
        closest, found = knn(block, queries, min(k, len(block)), exact)
        similarities = np.concatenate([similarities, closest], axis=1)
        rows = np.concatenate([rows, found + start], axis=1)
        order = np.lexsort((rows, -similarities), axis=1)[:, :k]
        similarities = np.take_along_axis(similarities, order, axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
    return similarities, rows


class Neighbours:
    """A filled index over ``base`` [N, d], for callers that search it block by block (see :func:`knn`)."""

    def __init__(self, base: NDArray[Any], params: NeighbourParams) -> None:
        check_descriptors(base, "base")
        self._set(base, params, *build_index(base, params))

    def _set(self, base: NDArray[Any], params: NeighbourParams, index: Any, factory: str) -> None:
        self._base, self._params, self._exact = base, params, factory == "Flat"
        gpu = indexes.gpus(params.device) > 0
        self._candidates = indexes.Searcher(index, probes_for(factory, params, gpu=gpu))

    @classmethod
    def over(cls, base: NDArray[Any], params: NeighbourParams, index: Any, factory: str) -> Neighbours:
        """Of an index that is filled already with the rows of ``base``."""
        made = cls.__new__(cls)
        made._set(base, params, index, factory)
        return made

    def search(
        self, queries: NDArray[Any], k: int, floor: float | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As :func:`knn`; with ``floor``, neighbours of that cosine and less may be missing (row -1), which is faster.

        A coded index ranks its candidates well enough that, once a round of them holds nothing over the floor, the
        rest is not scored exactly.
        """
        base, params = self._base, self._params
        check_descriptors(queries, "queries")
        if base.shape[1] != queries.shape[1]:
            raise VitrailError(f"neighbours: base has {base.shape[1]} dimensions, queries {queries.shape[1]}")
        if not 1 <= k <= len(base):
            raise VitrailError(f"neighbours: k={k} of {len(base)} descriptors; choose k between 1 and {len(base)}")
        wanted = k if self._exact else min(len(base), max(k, min(k * params.candidates, MOST)))
        similarities = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), params.block):
            block = fp32(queries[start : start + params.block])
            scores, ids = self._candidates(block, wanted)
            if not self._exact:
                scores = _rescore(base, block, ids, floor)
            order = np.lexsort((ids, -scores), axis=1)[:, :k]
            similarities[start : start + len(block)] = np.take_along_axis(scores, order, axis=1)
            rows[start : start + len(block)] = np.take_along_axis(ids, order, axis=1)
        rows[~np.isfinite(similarities)] = -1
        return similarities, rows


def build_index(base: NDArray[Any], params: NeighbourParams) -> tuple[Any, str]:
    """A filled index over ``base`` [N, d] in memory, GPU memory where there is a GPU, and its factory string."""
    factory = factory_for(len(base), base.shape[1], params, gpu=indexes.gpus(params.device) > 0)
    index = indexes.to_device(indexes.make(factory, base.shape[1]), params.device)
    indexes.train(index, base, factory, params)
    indexes.fill(index, base)
    return indexes.packed(index), factory


def _rescore(
    base: NDArray[Any], queries: NDArray[np.float32], ids: NDArray[np.int64], floor: float | None
) -> NDArray[np.float32]:
    """Exact inner products [b, c] of ``queries`` [b, d] with the candidates ``ids`` [b, c], best guess first.

    -inf where there is no candidate (-1), and where a ``floor`` made it not worth scoring.
    """
    scores = np.full(ids.shape, -np.inf, np.float32)
    rows = np.arange(len(ids))
    begin, end = 0, ids.shape[1] if floor is None else FIRST_ROUND
    while begin < ids.shape[1] and len(rows):
        end = min(end, ids.shape[1])
        step = max(1, ROWS // (end - begin))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            scores[part, begin:end] = _exact(base, queries[part], ids[part, begin:end])
        if floor is not None:
            rows = rows[(scores[rows, begin:end] > floor).any(1)]
        begin, end = end, 2 * end
    return scores


def _exact(base: NDArray[Any], queries: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    import torch

    candidates = fp32(base[np.maximum(ids, 0).ravel()]).reshape(*ids.shape, base.shape[1])  # [s, c, d]
    scores = torch.bmm(torch.from_numpy(candidates), torch.from_numpy(queries)[:, :, None])[:, :, 0].numpy()
    scores[ids < 0] = -np.inf
    return np.asarray(scores, np.float32)
