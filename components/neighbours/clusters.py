"""k-means, by FAISS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.errors import VitrailError
from components.neighbours import index as indexes
from components.neighbours.checks import ROWS, check_descriptors, fp32


@dataclass(frozen=True)
class KMeans:
    """How points are clustered."""

    k: int  # clusters
    iterations: int  # of Lloyd's algorithm
    seed: int  # of the first centroids
    # Centroids are kept at unit length and the nearest is that of largest cosine; otherwise Euclidean.
    spherical: bool = True
    # The first centroids are drawn far from each other (AFK-MC2, Bachem et al. 2016: k-means++ without its passes over
    # all points), not uniformly.
    spread: bool = False
    device: Literal["auto", "cpu"] = "auto"  # auto: every GPU that FAISS sees


def kmeans(
    points: NDArray[Any], how: KMeans, start: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """k-means over all ``points`` [N, d].

    Args:
        points: floating; L2-normalised where ``how.spherical``.
        how: clusters, iterations, seed, distance.
        start: first centroids [k, d]; None: drawn from the points.

    Returns:
        centroids [k, d] float32, and per point [N] its cluster (int64) and its cosine to that centroid (``spherical``)
        or squared distance from it (Euclidean), float32.

    Raises:
        VitrailError: bad rows, or fewer points than clusters.
    """
    import faiss

    k, spherical = how.k, how.spherical
    check = check_descriptors if spherical else _check_finite
    check(points, "points")
    if not 1 <= k <= len(points):
        raise VitrailError(f"k-means: {k} clusters of {len(points)} points; choose at most {len(points)}")
    clusters = faiss.Kmeans(
        points.shape[1],
        k,
        niter=how.iterations,
        seed=how.seed,
        spherical=spherical,
        min_points_per_centroid=1,
        init_method=faiss.ClusteringInitMethod_AFK_MC2 if how.spread else faiss.ClusteringInitMethod_RANDOM,
        max_points_per_centroid=max(1, len(points)),  # all points, not FAISS' sample: k-means means k-means
        gpu=indexes.gpus(how.device) > 0,
    )
    clusters.train(fp32(points), init_centroids=start)
    centroids = np.ascontiguousarray(clusters.centroids, np.float32)
    assigned, score = assign(points, centroids, spherical=spherical, device=how.device)
    return centroids, assigned, score


def assign(
    points: NDArray[Any],
    centroids: NDArray[np.float32],
    *,
    spherical: bool,
    device: Literal["auto", "cpu"] = "auto",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest of ``centroids`` [k, d] for each of ``points`` [N, d], and the score as :func:`kmeans` gives it."""
    import faiss

    flat = faiss.IndexFlatIP(centroids.shape[1]) if spherical else faiss.IndexFlatL2(centroids.shape[1])
    index = indexes.to_device(flat, device)
    index.add(np.ascontiguousarray(centroids, np.float32))
    assigned = np.empty(len(points), np.int64)
    score = np.empty(len(points), np.float32)
    for begin in range(0, len(points), ROWS):
        scores, ids = index.search(fp32(points[begin : begin + ROWS]), 1)
        assigned[begin : begin + len(ids)], score[begin : begin + len(ids)] = ids[:, 0], scores[:, 0]
    return assigned, score


def _check_finite(points: NDArray[Any], name: str) -> None:
    if points.ndim != 2 or not points.size:
        raise VitrailError(f"{name}: expected points [N, d] with N > 0, found shape {list(points.shape)}")
    for begin in range(0, len(points), ROWS):
        bad = ~np.isfinite(points[begin : begin + ROWS]).all(1)
        if bad.any():
            raise VitrailError(f"{name}: row {begin + int(np.flatnonzero(bad)[0])} is NaN or infinite")
