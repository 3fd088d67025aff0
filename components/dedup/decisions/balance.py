"""Balancing without queries: hierarchical k-means with resampling, then sampling from the top (Vo et al. 2024).

"Automatic Data Curation for Self-Supervised Learning: A Clustering-Based Approach", arXiv 2405.15613. k-means alone
puts most of its centroids where most of the data lies. Clustering the centroids again, and again, flattens that: each
level's clusters cover the space more evenly than the one below. Resampling helps within a level: centroids are fitted
anew on the few points closest to each, so that dense clusters weigh no more than sparse ones. The sample is then shared
out from the top, as equally among clusters as their sizes allow, down to the images.

Memory: the points in fp32 during a level's k-means, 8 bytes a point a level for the clusters, and the centroids.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from components.errors import VitrailError
from components.neighbours import KMeans, kmeans
from components.neighbours.clusters import assign
from components.params import Seed, Strict


class LevelParams(Strict):
    """One level of the hierarchy."""

    clusters: int = Field(ge=1, le=10_000_000)
    resampling: int = Field(
        0, ge=0, le=1000
    )  # times the centroids are fitted again; the paper: 1 at the first level, 10 above
    points: int = Field(
        1, ge=1, le=1_000_000
    )  # nearest points a cluster that they are fitted on, about half its mean size


class BalanceParams(Strict):
    """``balance`` in params/dedup.yaml: how many images, spread over how many clusters of clusters."""

    images: int = Field(ge=1, le=10**12)  # to sample from what survives dedup
    levels: list[LevelParams] = Field(min_length=1)  # from the images up; the paper: 10M, 500k, 50k, 10k clusters
    leaf: Literal["random", "closest"] = "random"  # which images of a lowest cluster
    iterations: int = Field(20, ge=1, le=10**12)  # of each k-means; the paper: 50
    seed: Seed = 0

    @model_validator(mode="after")
    def _narrows(self) -> BalanceParams:
        counts = [level.clusters for level in self.levels]
        if counts != sorted(counts, reverse=True) or len(set(counts)) != len(counts):
            raise ValueError(f"each level must have fewer clusters than the one below it, found {counts}")
        return self


class ClusterLevel(NamedTuple):
    """Clusters of the level below, or of the points."""

    centroids: NDArray[np.float32]  # [k, d]
    parent: NDArray[np.int64]  # [n] the cluster of each point, or of each cluster below
    distance: NDArray[np.float32]  # [n] squared Euclidean, to that cluster's centroid


def balance(points: NDArray[Any], params: BalanceParams, device: Literal["auto", "cpu"] = "auto") -> NDArray[np.int64]:
    """The rows of ``points`` [N, d] that are sampled: ``params.images`` of them, sorted; all where there are fewer.

    ``device``: of k-means, as in :func:`components.neighbours.kmeans`.

    Raises:
        VitrailError: more clusters than points.
    """
    return sample(hierarchy(points, params, device), params)


def hierarchy(
    points: NDArray[Any], params: BalanceParams, device: Literal["auto", "cpu"] = "auto"
) -> list[ClusterLevel]:
    """The levels, lowest first."""
    if params.levels[0].clusters > len(points):
        raise VitrailError(
            f"balance.levels: {params.levels[0].clusters} clusters of {len(points)} images; use fewer clusters"
        )
    levels: list[ClusterLevel] = []
    below: NDArray[Any] = points
    for number, given in enumerate(params.levels):
        levels.append(_cluster(below, given, params.iterations, params.seed + number, device))
        below = levels[-1].centroids
    return levels


def _cluster(
    points: NDArray[Any], given: LevelParams, iterations: int, seed: int, device: Literal["auto", "cpu"]
) -> ClusterLevel:
    # Each fit starts from centroids drawn far apart: from the old ones, Lloyd's algorithm would stay where it is.
    how = KMeans(given.clusters, iterations, seed, spherical=False, spread=True, device=device)
    fit = partial(kmeans, how=how)
    centroids, parent, distance = fit(points)
    for _ in range(given.resampling):
        chosen = _closest(parent, distance, given.points)
        if len(chosen) < given.clusters:
            break  # clusters without a point: nothing to fit so many centroids on
        centroids, _, _ = fit(points[chosen])
        parent, distance = assign(points, centroids, spherical=False, device=device)
    return ClusterLevel(centroids, parent, distance)


def _closest(parent: NDArray[np.int64], distance: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The rows of the ``count`` points closest to each cluster's centroid, sorted."""
    order = np.lexsort((distance, parent))
    starts = np.flatnonzero(np.r_[True, parent[order][1:] != parent[order][:-1]])
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return np.sort(order[rank < count])


def sample(levels: list[ClusterLevel], params: BalanceParams) -> NDArray[np.int64]:
    """Rows of the points, sorted: ``params.images`` of them, shared out from the top level down."""
    generator = np.random.default_rng(params.seed)
    sizes = [np.bincount(levels[0].parent, minlength=len(levels[0].centroids))]  # images below each cluster, by level
    for level in levels[1:]:
        sizes.append(np.bincount(level.parent, sizes[-1], len(level.centroids)).astype(np.int64))
    target = min(params.images, int(sizes[0].sum()))
    share = water_fill(sizes[-1], target, generator)
    for number in range(len(levels) - 1, 0, -1):
        share = _hand_down(levels[number].parent, sizes[number - 1], share, generator)
    order = np.lexsort((_preference(levels[0], params.leaf, generator), levels[0].parent))
    starts = np.cumsum(sizes[0]) - sizes[0]
    rank = np.arange(len(order)) - starts[levels[0].parent[order]]
    return np.sort(order[rank < share[levels[0].parent[order]]])


def _preference(level: ClusterLevel, leaf: str, generator: np.random.Generator) -> NDArray[Any]:
    return level.distance if leaf == "closest" else generator.random(len(level.parent))


def _hand_down(
    parent: NDArray[np.int64], sizes: NDArray[np.int64], share: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Each cluster's ``share`` among its children of ``sizes``; ``parent`` names every child's cluster."""
    order = np.argsort(parent, kind="stable")
    ends = np.cumsum(np.bincount(parent, minlength=len(share)))
    handed = np.zeros(len(sizes), np.int64)
    for cluster in np.flatnonzero(share):
        children = order[(ends[cluster - 1] if cluster else 0) : ends[cluster]]
        handed[children] = water_fill(sizes[children], int(share[cluster]), generator)
    return handed


def water_fill(
    sizes: NDArray[np.int64], target: int, generator: np.random.Generator | None = None
) -> NDArray[np.int64]:
    """Whole shares [n] of ``target`` among ``sizes`` [n]: min(level, size) each, for one water level.

    What does not divide falls, one each, to clusters above the level: to the first of them, or to random ones where a
    ``generator`` is given. The shares sum to the smaller of ``target`` and all sizes.
    """
    sizes = np.asarray(sizes, np.int64)
    target = min(target, int(sizes.sum()))
    ordered = np.sort(sizes)
    full = np.r_[0, np.cumsum(ordered)[:-1]]  # what those smaller than the i-th hold
    room = len(ordered) - np.arange(len(ordered))
    # With the i smallest drowned, the water stands at (target - what they hold) / the others, if that drowns no more.
    fits = np.flatnonzero(full + ordered * room >= target)
    if not len(fits) or target <= 0:
        return np.zeros_like(sizes) if target <= 0 else sizes
    first = int(fits[0])
    level, rest = divmod(target - int(full[first]), int(room[first]))
    shares = np.minimum(sizes, level)
    above = np.flatnonzero(sizes > level)
    extra = above[:rest] if generator is None else generator.permutation(above)[:rest]
    shares[extra] += 1
    return shares
