"""Which index for how many vectors: FAISS factory strings, and what they need."""

from __future__ import annotations

import math
import re

import numpy as np

from components.errors import VitrailError
from components.neighbours.params import POINTS_PER_CENTROID, NeighbourParams

LEAST_PROBES = 64
LARGE = 10_000_000  # rows from which the lists are many enough to be found through an HNSW graph
GPU_PROBES = 2048  # more than this FAISS refuses on a GPU


def factory_for(count: int, dim: int, params: NeighbourParams, *, gpu: bool) -> str:
    """The factory string for ``count`` vectors of ``dim`` dimensions.

    Below :data:`LARGE` about sqrt(count) lists, whose table one matrix product scans faster than an HNSW graph is
    walked; above, FAISS' guidance by decade (its wiki, "Guidelines to choose an index"), with the graph on a CPU.

    Raises:
        VitrailError: ``pq_bytes`` does not divide the coded dimension.
    """
    if params.factory != "auto":
        return params.factory
    if count <= params.flat_up_to:
        return "Flat"
    bits = 8 if gpu else params.pq_bits
    coded, parts = params.opq_dim or dim, params.pq_bytes * 8 // bits
    if coded % parts:
        raise VitrailError(
            f"neighbours.pq_bytes={params.pq_bytes} ({parts} parts of {bits} bits) does not divide the "
            f"{coded} dimensions to code"
        )
    if count < LARGE:
        lists = 1 << round(math.log2(math.sqrt(count)))
    else:
        lists = 1 << (16 if count < 10 * LARGE else 18 if count < 100 * LARGE else 20)
    lists = min(lists, max(1, count // params.train_per_list))
    graph = "_HNSW32" if count >= LARGE and not gpu else ""
    rotation = f"OPQ{parts}_{params.opq_dim}," if params.opq_dim else ""
    return f"{rotation}IVF{lists}{graph},PQ{parts}{'' if bits == 8 else f'x{bits}'}"


def lists_of(factory: str) -> int:
    """How many inverted lists ``factory`` has; 0: none."""
    return int(found[1]) if (found := re.search(r"IVF(\d+)", factory)) else 0


def probes_for(factory: str, params: NeighbourParams, *, gpu: bool = False) -> int:
    """How many lists a query visits, 0 where there are none.

    As given; or as few as find the share ``edge_recall`` of the edges at ``edge_cosine`` (:func:`expected_recall`), 64
    at least.
    """
    lists = lists_of(factory)
    if params.nprobe == "auto":
        wanted = max(LEAST_PROBES, _probes_needed(lists, params)) if lists else 0
    else:
        wanted = params.nprobe
    return min(wanted, lists, GPU_PROBES if gpu else lists)


def expected_recall(lists: int, probes: int, cosine: float) -> float:
    """The share of edges at ``cosine`` that a self-join finds from either end, visiting ``probes`` of ``lists``.

    Of rows that are uniform on the sphere, where lists help least; whatever gathers in clusters is found more often.
    Scores of a row with list centres are then Gaussian but for its own list's, the largest. A row at ``cosine`` c from
    another scores c x that largest + sqrt(1 - c^2) x noise with the other's list, which is visited if that is among
    its ``probes`` best. The two ends are taken as independent. Against centres and rows drawn at 512 dimensions this
    is up to 0.02 too high where it is 0.95 and up to 0.04 where it is 0.7 (docs/dedup.md). Losses by codes are not
    in it.
    """
    from scipy.special import ndtr, ndtri

    if not lists or probes >= lists:
        return 1.0
    steps = (np.arange(1000) + 0.5) / 1000
    largest = -ndtri(-np.expm1(np.log(steps) / lists))  # quantiles of the largest of `lists` Gaussians
    visited = -ndtri(probes / lists)
    one = float(ndtr((cosine * largest - visited) / math.sqrt(max(1e-12, 1 - cosine * cosine))).mean())
    return 1 - (1 - one) ** 2


def _probes_needed(lists: int, params: NeighbourParams) -> int:
    low, high = 1, lists
    while low < high:
        middle = (low + high) // 2
        if expected_recall(lists, middle, params.edge_cosine) >= params.edge_recall:
            high = middle
        else:
            low = middle + 1
    return low


def training_rows(count: int, factory: str, params: NeighbourParams) -> int:
    """How many of ``count`` vectors train the index ``factory``.

    Raises:
        VitrailError: too few for its lists or codes.
    """
    lists = max(1, lists_of(factory))
    codes = re.search(r"(?<!O)PQ\d+(?:x(\d+))?", factory)
    centroids = 0 if codes is None else 1 << int(codes[1] or 8)
    needed = POINTS_PER_CENTROID * max(lists, centroids)
    if count < needed:
        raise VitrailError(
            f"neighbours.factory {factory!r}: needs {needed:,} training vectors, there are {count:,}; "
            "use fewer lists, or 'Flat'"
        )
    return min(count, max(needed, params.train_per_list * lists))
