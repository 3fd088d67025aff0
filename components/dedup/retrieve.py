"""Retrieval: of the deduplicated pool, the images close to a data set of interest (DINOv2 paper, appendix A).

Sample-based: each query image brings its k nearest pool images (the paper: k = 4, or 32 for ImageNet-1k).
Cluster-based, for small query sets: clusters of the pool hit by more than t queries give images, up to a cap.
Each data set may have its own way (`per_set`), as the paper's table 15 lists them. The paper's counts are exactly
images times k, and it does not say whether an image found twice counted twice or a later neighbour stood in;
`collisions` makes it a choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.dedup.descriptors import DescriptorParams
from components.errors import VitrailError
from components.neighbours import NeighbourParams, Neighbours, kmeans, knn
from components.params import Strict


class SampleParams(Strict):
    """k neighbours a query image."""

    kind: Literal["sample"]
    k: int = Field(4, ge=1)
    # An image found by several queries: "multiset" gives it that weight, "unique" counts it once, "next_neighbour"
    # gives it to the closest query, and the others take their next neighbours instead.
    collisions: Literal["multiset", "unique", "next_neighbour"] = "unique"


class ClusterParams(Strict):
    """Clusters with enough query hits."""

    kind: Literal["cluster"]
    clusters: int = Field(100_000, ge=1)  # the paper's
    hits: int = Field(3, ge=0)  # clusters with more query images than this give images
    per_cluster: int = Field(10_000, ge=1)  # images a cluster gives at most, the closest to its centre first
    cap: int = Field(1_000_000, ge=1)  # images a data set brings at most
    iterations: int = Field(20, ge=1)  # of k-means
    seed: int = 0


How = Annotated[SampleParams | ClusterParams, Field(discriminator="kind")]


class RetrievalParams(Strict):
    """Which benchmarks' training sides are the queries, and how they bring images."""

    queries: list[str] = Field(min_length=1)  # names in benchmarks.yaml
    how: How
    per_set: dict[str, How] = {}  # data sets of `queries` that are retrieved in another way
    # Taken whatever they resemble (table 15's "as is"): name -> what `source` in such images' index rows begins with
    as_is: dict[str, str] = {}
    min_similarity: float = Field(-1.0, ge=-1, le=1)  # cosine below which a neighbour is not taken
    descriptor: DescriptorParams | None = None  # another embedding to retrieve with; null: the copy descriptor


class Retrieved(NamedTuple):
    """Per row of the pool: how often it was found, and by which query it was found best."""

    times: NDArray[np.int64]  # [N]; 0: not retrieved
    query: NDArray[np.int64]  # [N]; -1 where not retrieved
    similarity: NDArray[np.float32]  # [N], cosine to that query (to its cluster's centre, cluster-based)


class Brought(NamedTuple):
    """What one data set brought, a line of the paper's table 15."""

    name: str
    queries: int
    found: int  # images found, an image as often as it was found
    selected: int  # different images


def retrieve(
    pool: NDArray[Any], queries: Mapping[str, NDArray[Any]], params: RetrievalParams, neighbours: NeighbourParams
) -> tuple[Retrieved, list[Brought]]:
    """What the ``queries`` of each data set [M, d] bring from ``pool`` [N, d], and the count of each.

    Query numbers run through all data sets, in the order given. An image that several data sets find counts for each;
    its query is the closest.

    Raises:
        VitrailError: k or the clusters exceed the pool.
    """
    times = np.zeros(len(pool), np.int64)
    best = np.full(len(pool), -np.inf, np.float32)
    query = np.full(len(pool), -1, np.int64)
    once = True
    brought, first = [], 0
    index = None
    for name, given in queries.items():
        how = params.per_set.get(name, params.how)
        if isinstance(how, SampleParams):
            if how.k > len(pool):
                raise VitrailError(f"retrieval.how.k={how.k}: only {len(pool)} images are left after dedup; lower k")
            index = index or Neighbours(pool, neighbours)
            one = _by_sample(len(pool), index, given, how, params.min_similarity)
            once = once and how.collisions != "multiset"
        else:
            one = _by_cluster(pool, given, how, params.min_similarity, neighbours)
        brought.append(Brought(name, len(given), int(one.times.sum()), int((one.times > 0).sum())))
        closer = (one.times > 0) & (one.similarity > best)
        best[closer], query[closer] = one.similarity[closer], one.query[closer] + first
        times += one.times
        first += len(given)
    if once:
        times = np.minimum(times, 1)
    return Retrieved(times, query, np.where(times > 0, best, np.nan).astype(np.float32)), brought


def _by_sample(count: int, index: Neighbours, queries: NDArray[Any], how: SampleParams, least: float) -> Retrieved:
    if how.collisions == "next_neighbour":
        return _next_neighbours(count, index, queries, how.k, least)
    similarity, rows = index.search(queries, how.k)
    taken = (rows >= 0) & (similarity >= least)
    query = np.broadcast_to(np.arange(len(queries))[:, None], rows.shape)[taken]
    found = _best(count, rows[taken], query, similarity[taken])
    return found if how.collisions == "multiset" else found._replace(times=np.minimum(found.times, 1))


def _next_neighbours(count: int, index: Neighbours, queries: NDArray[Any], k: int, least: float) -> Retrieved:
    """Each query gets ``k`` images that no other query has, as long as the pool holds enough that are close enough.

    In rounds, every query that lacks images names its nearest free one; the closest query gets it (the first, of
    equally close ones), the others name their next. Lists of neighbours are made longer only when one is used up.
    """
    reach = min(count, 2 * k)
    owner = np.full(count, -1, np.int64)
    similarity_of = np.full(count, np.nan, np.float32)
    has = np.zeros(len(queries), np.int64)
    asking = np.arange(len(queries))  # who lacks images and has not seen the whole list within reach
    while len(asking):
        similarity, rows = index.search(queries[asking], reach)
        place = np.zeros(len(asking), np.int64)  # in each one's list
        active = np.arange(len(asking))
        while len(active):
            row, close = rows[active, place[active]], similarity[active, place[active]]
            possible = (row >= 0) & (close >= least)
            free = possible & (owner[np.maximum(row, 0)] < 0)
            bids = np.flatnonzero(free)
            order = bids[np.lexsort((asking[active[bids]], -close[bids], row[bids]))]
            won = order[np.r_[True, row[order][1:] != row[order][:-1]]] if len(order) else order
            owner[row[won]], similarity_of[row[won]] = asking[active[won]], close[won]
            has[asking[active[won]]] += 1
            place[active] += 1  # a lost or taken image is never free again: go on to the next
            place[active[~possible]] = reach  # the list is by similarity, so nothing closer follows
            active = active[(has[asking[active]] < k) & (place[active] < reach)]
        used_up = (has[asking] < k) & (similarity[:, -1] >= least) & (rows[:, -1] >= 0)
        asking = asking[used_up] if reach < count else asking[:0]
        reach = min(count, 2 * reach)
    return Retrieved((owner >= 0).astype(np.int64), owner, similarity_of)


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
