"""Retrieval: of the deduplicated pool, the images close to a data set of interest (DINOv2 paper, appendix A).

Sample-based: each query image brings its k nearest pool images (the paper: k = 4, or 32 for ImageNet-1k).
Cluster-based, for small query sets: clusters of the pool hit by more than t queries give images, up to a cap.
The paper does not say whether an image found twice counts twice; `collisions` makes it a choice.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.dedup.descriptors import DescriptorParams
from components.errors import VitrailError
from components.neighbours import NeighbourParams, kmeans, knn
from components.params import Strict


class SampleParams(Strict):
    """k neighbours a query image."""

    kind: Literal["sample"]
    k: int = Field(4, ge=1)
    collisions: Literal["multiset", "unique"] = "unique"  # multiset: an image's weight is how often it was found


class ClusterParams(Strict):
    """Clusters with enough query hits."""

    kind: Literal["cluster"]
    clusters: int = Field(100_000, ge=1)  # the paper's
    hits: int = Field(3, ge=0)  # clusters with more query images than this give images
    per_cluster: int = Field(10_000, ge=1)  # images a cluster gives at most, the closest to its centre first
    cap: int = Field(1_000_000, ge=1)  # images a data set brings at most
    iterations: int = Field(20, ge=1)  # of k-means
    seed: int = 0


class RetrievalParams(Strict):
    """Which benchmarks' training sides are the queries, and how they bring images."""

    queries: list[str] = Field(min_length=1)  # names in benchmarks.yaml
    how: SampleParams | ClusterParams = Field(discriminator="kind")
    min_similarity: float = Field(-1.0, ge=-1, le=1)  # cosine below which a neighbour is not taken
    descriptor: DescriptorParams | None = None  # another embedding to retrieve with; null: the copy descriptor


class Retrieved(NamedTuple):
    """Per row of the pool: how often it was found, and by which query it was found best."""

    times: NDArray[np.int64]  # [N]; 0: not retrieved
    query: NDArray[np.int64]  # [N]; -1 where not retrieved
    similarity: NDArray[np.float32]  # [N], cosine to that query (to its cluster's centre, cluster-based)


def retrieve(
    pool: NDArray[Any], queries: NDArray[Any], params: RetrievalParams, neighbours: NeighbourParams
) -> Retrieved:
    """What ``queries`` [M, d] bring from ``pool`` [N, d].

    Raises:
        VitrailError: k or the clusters exceed the pool.
    """
    if isinstance(params.how, SampleParams):
        return _by_sample(pool, queries, params.how, params.min_similarity, neighbours)
    return _by_cluster(pool, queries, params.how, params.min_similarity, neighbours)


def _by_sample(
    pool: NDArray[Any], queries: NDArray[Any], how: SampleParams, least: float, neighbours: NeighbourParams
) -> Retrieved:
    if how.k > len(pool):
        raise VitrailError(f"retrieval.how.k={how.k}: only {len(pool)} images are left after dedup; lower k")
    similarity, rows = knn(pool, queries, how.k, neighbours)
    taken = (rows >= 0) & (similarity >= least)
    query = np.broadcast_to(np.arange(len(queries))[:, None], rows.shape)[taken]
    found = _best(len(pool), rows[taken], query, similarity[taken])
    return found if how.collisions == "multiset" else found._replace(times=np.minimum(found.times, 1))


def _by_cluster(
    pool: NDArray[Any], queries: NDArray[Any], how: ClusterParams, least: float, neighbours: NeighbourParams
) -> Retrieved:
    if how.clusters > len(pool):
        raise VitrailError(f"retrieval.how.clusters={how.clusters}: only {len(pool)} images are left; use fewer")
    centroids, assigned, cosine = kmeans(pool, how.clusters, iterations=how.iterations, seed=how.seed)
    similarity, nearest = knn(centroids, queries, 1, neighbours)
    hits = np.bincount(nearest[:, 0], minlength=how.clusters)
    best_query = np.full(how.clusters, -1, np.int64)
    order = np.argsort(similarity[:, 0], kind="stable")  # the closest query of a cluster is written last
    best_query[nearest[order, 0]] = order
    rows = np.lexsort((-cosine, assigned))  # by cluster, closest to its centre first
    start = np.searchsorted(assigned[rows], np.arange(how.clusters))
    rank = np.arange(len(rows)) - start[assigned[rows]]
    good = (hits[assigned[rows]] > how.hits) & (rank < how.per_cluster) & (cosine[rows] >= least)
    rows = rows[good]
    rows = rows[np.argsort(-cosine[rows], kind="stable")][: how.cap]
    return _best(len(pool), rows, best_query[assigned[rows]], cosine[rows])


def _best(count: int, rows: NDArray[np.int64], query: NDArray[np.int64], similarity: NDArray[np.float32]) -> Retrieved:
    order = np.argsort(similarity, kind="stable")  # the best is written last and stays
    best_query = np.full(count, -1, np.int64)
    best = np.full(count, np.nan, np.float32)
    best_query[rows[order]], best[rows[order]] = query[order], similarity[order]
    return Retrieved(np.bincount(rows, minlength=count), best_query, best)
