"""The one door to FAISS: nearest neighbours by cosine, and k-means, in bounded memory.

The index is chosen by size: exact (Flat) for small sets, inverted lists with product-quantised codes above (an HNSW
graph finds the lists on CPU, a plain table on GPU). Whatever a coded index proposes is scored again with the exact
descriptors before anyone compares it with a threshold: the codes' error is as large as the thresholds' margin.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.errors import VitrailError
from components.params import Strict

POINTS_PER_CENTROID = 39  # FAISS' own lower bound for a k-means it does not warn about
CODEBOOK = 256  # centroids of an 8-bit product quantiser
SCALAR_ROWS = 1 << 16  # rows converted to fp32 at a time


class NeighbourParams(Strict):
    """How neighbours are searched for; curation-recipe.md section 8 holds the guidance behind the defaults."""

    factory: str = "auto"  # a FAISS factory string, or "auto": by size and device
    flat_up_to: int = Field(200_000, ge=1)  # base rows up to which the search is exact
    pq_bytes: int = Field(64, ge=1)  # code bytes a vector; must divide the dimension (or opq_dim)
    opq_dim: int = Field(0, ge=0)  # dimension OPQ rotates to before coding; 0: no OPQ
    train_per_list: int = Field(64, ge=POINTS_PER_CENTROID)  # training vectors a list; FAISS advises 30 to 256
    nprobe: int = Field(64, ge=1, le=2048)  # lists visited a query; a GPU allows 2,048 at most
    candidates: int = Field(4, ge=1)  # times k candidates are taken from a coded index and scored exactly
    block: int = Field(8192, ge=1)  # queries at a time: bounds memory
    device: Literal["auto", "cpu"] = "auto"  # auto: every GPU that FAISS sees
    seed: int = 0  # which vectors train the index


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


class Neighbours:
    """A filled index over ``base`` [N, d], for callers that search it block by block (see :func:`knn`)."""

    def __init__(self, base: NDArray[Any], params: NeighbourParams) -> None:
        check_descriptors(base, "base")
        self._base, self._params = base, params
        self._index, self._exact = build_index(base, params)

    def search(self, queries: NDArray[Any], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As :func:`knn`."""
        base, params = self._base, self._params
        check_descriptors(queries, "queries")
        if base.shape[1] != queries.shape[1]:
            raise VitrailError(f"neighbours: base has {base.shape[1]} dimensions, queries {queries.shape[1]}")
        if not 1 <= k <= len(base):
            raise VitrailError(f"neighbours: k={k} of {len(base)} descriptors; choose k between 1 and {len(base)}")
        wanted = k if self._exact else min(len(base), k * params.candidates)
        similarities = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), params.block):
            block = _fp32(queries[start : start + params.block])
            scores, ids = self._index.search(block, wanted)
            if not self._exact:
                scores = _rescore(base, block, ids)
            order = np.lexsort((ids, -scores), axis=1)[:, :k]
            similarities[start : start + len(block)] = np.take_along_axis(scores, order, axis=1)
            rows[start : start + len(block)] = np.take_along_axis(ids, order, axis=1)
        rows[~np.isfinite(similarities)] = -1
        return similarities, rows


def build_index(base: NDArray[Any], params: NeighbourParams) -> tuple[Any, bool]:
    """A filled FAISS inner-product index over ``base`` [N, d], and whether its scores are exact."""
    import faiss

    gpus = faiss.get_num_gpus() if params.device == "auto" else 0
    factory = factory_for(len(base), base.shape[1], params, gpu=gpus > 0)
    try:
        index = faiss.index_factory(base.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as fault:
        reason = str(fault).strip().splitlines()[-1].rpartition("Error: ")[2]
        raise VitrailError(
            f"neighbours.factory {factory!r}: FAISS refuses it for {base.shape[1]} dimensions ({reason})"
        ) from None
    if gpus:
        options = faiss.GpuMultipleClonerOptions()
        options.useFloat16 = True  # half-precision look-up tables: codes of 56 bytes and more need them
        options.shard = True
        index = faiss.index_cpu_to_all_gpus(index, options)
    if not index.is_trained:
        index.train(_training_rows(base, factory, params))
    for start in range(0, len(base), SCALAR_ROWS):
        index.add(_fp32(base[start : start + SCALAR_ROWS]))
    if "IVF" in factory:
        space = faiss.GpuParameterSpace() if gpus else faiss.ParameterSpace()
        space.set_index_parameter(index, "nprobe", params.nprobe)
    return index, factory == "Flat"


def factory_for(count: int, dim: int, params: NeighbourParams, *, gpu: bool) -> str:
    """The factory string for ``count`` vectors of ``dim`` dimensions (curation-recipe.md section 8's table).

    Raises:
        VitrailError: ``pq_bytes`` does not divide the coded dimension.
    """
    if params.factory != "auto":
        return params.factory
    if count <= params.flat_up_to:
        return "Flat"
    coded = params.opq_dim or dim
    if coded % params.pq_bytes:
        raise VitrailError(f"neighbours.pq_bytes={params.pq_bytes} does not divide the {coded} dimensions to code")
    # 4 sqrt(N) to 16 sqrt(N) lists below a million vectors; from there fixed powers of two by decade
    if count < 1_000_000:
        lists = 1 << round(math.log2(8 * math.sqrt(count)))
    else:
        lists = 1 << (16 if count < 10_000_000 else 18 if count < 100_000_000 else 20)
    lists = min(lists, max(1, count // params.train_per_list))
    rotation = f"OPQ{params.pq_bytes}_{params.opq_dim}," if params.opq_dim else ""
    return f"{rotation}IVF{lists}{'' if gpu else '_HNSW32'},PQ{params.pq_bytes}"


def kmeans(
    points: NDArray[Any], k: int, *, iterations: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Spherical k-means: centroids [k, d], and per point [N] its cluster and its cosine to that centroid.

    Raises:
        VitrailError: bad rows, or fewer points than clusters.
    """
    import faiss

    check_descriptors(points, "points")
    if not 1 <= k <= len(points):
        raise VitrailError(f"k-means: {k} clusters of {len(points)} points; choose at most {len(points)}")
    clusters = faiss.Kmeans(
        points.shape[1], k, niter=iterations, seed=seed, spherical=True, min_points_per_centroid=1, gpu=False
    )
    clusters.train(_fp32(points))
    centroids = np.ascontiguousarray(clusters.centroids, np.float32)
    assigned = np.empty(len(points), np.int64)
    cosine = np.empty(len(points), np.float32)
    for start in range(0, len(points), SCALAR_ROWS):
        scores, ids = clusters.index.search(_fp32(points[start : start + SCALAR_ROWS]), 1)
        assigned[start : start + len(ids)], cosine[start : start + len(ids)] = ids[:, 0], scores[:, 0]
    return centroids, assigned, cosine


def check_descriptors(rows: NDArray[Any], name: str) -> None:
    """Raise a :class:`VitrailError` unless ``rows`` is [N > 0, d > 0], finite, and without zero rows."""
    if rows.ndim != 2 or not rows.size:
        raise VitrailError(f"{name}: expected descriptors [N, d] with N > 0, found shape {list(rows.shape)}")
    for start in range(0, len(rows), SCALAR_ROWS):
        norms = np.linalg.norm(np.asarray(rows[start : start + SCALAR_ROWS], np.float32), axis=1)
        if not np.isfinite(norms).all():
            row = start + int(np.flatnonzero(~np.isfinite(norms))[0])
            raise VitrailError(f"{name}: row {row} is NaN or infinite; compute the descriptors again")
        if not norms.all():
            row = start + int(np.flatnonzero(norms == 0)[0])
            raise VitrailError(f"{name}: row {row} is all zeros, it has no direction; drop that image")


def _training_rows(base: NDArray[Any], factory: str, params: NeighbourParams) -> NDArray[np.float32]:
    lists = int(found[1]) if (found := re.search(r"IVF(\d+)", factory)) else 1
    needed = max(POINTS_PER_CENTROID * lists, POINTS_PER_CENTROID * CODEBOOK if "PQ" in factory else 0)
    if len(base) < needed:
        raise VitrailError(
            f"neighbours.factory {factory!r}: needs {needed:,} training vectors, there are {len(base):,}; "
            "use fewer lists, or 'Flat'"
        )
    count = min(len(base), max(needed, params.train_per_list * lists))
    chosen = np.random.default_rng(params.seed).choice(len(base), count, replace=False)
    return _fp32(base[np.sort(chosen)])


def _rescore(base: NDArray[Any], queries: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Exact inner products [b, c] of ``queries`` with the candidates ``ids`` [b, c]; -inf where there is none (-1)."""
    scores = np.empty(ids.shape, np.float32)
    step = max(1, SCALAR_ROWS // ids.shape[1])
    for start in range(0, len(ids), step):
        part = ids[start : start + step]
        candidates = _fp32(base[np.maximum(part, 0)])  # [s, c, d]
        scores[start : start + step] = np.einsum("scd,sd->sc", candidates, queries[start : start + step])
    scores[ids < 0] = -np.inf
    return scores


def _fp32(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows, dtype=np.float32)
