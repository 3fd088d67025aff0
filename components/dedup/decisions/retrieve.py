"""Retrieval: of the deduplicated pool, the images close to a data set of interest (DINOv2 paper, appendix A).

Sample-based: each query image brings its k nearest pool images (the paper: k = 4, or 32 for ImageNet-1k).
Cluster-based, for small query sets: clusters of the pool hit by more than t queries give images, up to a cap.
Each data set may have its own way (`per_set`), as the paper's table 15 lists them. The paper's counts are exactly
images times k, and it does not say whether an image found twice counted twice or a later neighbour stood in;
`collisions` makes it a choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.descriptors.kinds import DescriptorParams
from components.errors import VitrailError
from components.neighbours import KMeans, NeighbourParams, Neighbours, kmeans, knn
from components.params import Seed, Strict


class SampleParams(Strict):
    """k neighbours a query image."""

    kind: Literal["sample"]
    k: int = Field(4, ge=1, le=1_000_000)
    # An image found by several queries: "multiset" gives it that weight, "unique" counts it once, "next_neighbour"
    # gives it to the closest query that has not k closer ones, and the others take their next neighbours instead.
    collisions: Literal["multiset", "unique", "next_neighbour"] = "unique"


class ClusterParams(Strict):
    """Clusters with enough query hits."""

    kind: Literal["cluster"]
    clusters: int = Field(100_000, ge=1, le=10_000_000)  # the paper's
    hits: int = Field(3, ge=0, le=1000)  # clusters with more query images than this give images
    per_cluster: int = Field(10_000, ge=1, le=10**12)  # images a cluster gives at most, the closest to its centre first
    cap: int = Field(1_000_000, ge=1, le=10**12)  # images a data set brings at most
    iterations: int = Field(20, ge=1, le=10**12)  # of k-means
    seed: Seed = 0


How = Annotated[SampleParams | ClusterParams, Field(discriminator="kind")]


class RetrievalParams(Strict):
    """Which benchmarks' training sides are the queries, and how they bring images."""

    queries: list[str] = Field(min_length=1)  # names in benchmarks.yaml
    how: How
    per_set: dict[str, How] = {}  # data sets of `queries` that are retrieved in another way
    # Taken whatever they resemble (table 15's "as is"): name -> what `source` in such images' index rows begins with
    as_is: dict[str, str] = {}
    # Cosine below which an image is not taken: to its query, or cluster-based to its cluster's centre
    min_similarity: float = Field(-1.0, ge=-1, le=1)
    descriptor: DescriptorParams | None = None  # another embedding to retrieve with; null: the copy descriptor


class Retrieved(NamedTuple):
    """Per row of the pool: how often it was found, and its closest query of those that brought it."""

    times: NDArray[np.int64]  # [N]; 0: not retrieved
    query: NDArray[np.int64]  # [N]; -1 where not retrieved
    similarity: NDArray[np.float32]  # [N], cosine to that query; NaN where not retrieved
    sources: Mapping[str, NDArray[np.int64]] = MappingProxyType({})  # data set -> rows that it brought, sorted


class QuerySetSummary(NamedTuple):
    """What one data set brought, a line of the paper's table 15."""

    name: str
    queries: int
    found: int  # the sum of its images' times: of "multiset" an image counts as often as found, else once
    selected: int  # different images


def retrieve(
    pool: NDArray[Any], queries: Mapping[str, NDArray[Any]], params: RetrievalParams, neighbours: NeighbourParams
) -> tuple[Retrieved, list[QuerySetSummary]]:
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
    summaries, first = [], 0
    sources: dict[str, NDArray[np.int64]] = {}
    index = None
    clusters: dict[str, Clusters] = {}  # of the pool: sets that ask for the same share them
    for name, given in queries.items():
        how = params.per_set.get(name, params.how)
        if isinstance(how, SampleParams):
            if how.k > len(pool):
                raise VitrailError(f"retrieval.how.k={how.k}: only {len(pool)} images are left after dedup; lower k")
            index = index or Neighbours(pool, neighbours)
            one = _by_sample(len(pool), index, given, how, params.min_similarity)
            once = once and how.collisions != "multiset"
        else:
            made = how.model_dump_json(include={"clusters", "iterations", "seed"})
            clusters[made] = clusters.get(made) or _clusters(pool, how, neighbours)
            one = _by_cluster(pool, given, how, params.min_similarity, clusters[made], neighbours)
        summaries.append(QuerySetSummary(name, len(given), int(one.times.sum()), int((one.times > 0).sum())))
        sources[name] = np.flatnonzero(one.times)
        closer = (one.times > 0) & (one.similarity > best)
        best[closer], query[closer] = one.similarity[closer], one.query[closer] + first
        times += one.times
        first += len(given)
    if once:
        times = np.minimum(times, 1)
    return Retrieved(times, query, np.where(times > 0, best, np.nan).astype(np.float32), sources), summaries


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

    Queries propose to images down their lists of neighbours; an image stays with the closest that ever asked (the
    first, of equally close ones), and who loses it goes on (deferred acceptance, Gale and Shapley 1962). So no query
    has an image while another would rather have it and is closer to it. Lists are made longer when they are used up.
    """
    reach = min(count, 2 * k)
    owner = np.full(count, -1, np.int64)
    nearness = np.full(count, -np.inf, np.float32)  # of each image to its owner
    ended = np.zeros(len(queries), bool)  # who has asked every image that is close enough
    while len(asking := np.flatnonzero((_held(owner, len(queries)) < k) & ~ended)):
        similarity, rows = index.search(queries[asking], reach)
        place = np.zeros(len(asking), np.int64)  # in each one's list; asking the same image again changes nothing
        while True:
            short = (_held(owner, len(queries))[asking] < k) & (place < reach)
            active = np.flatnonzero(short)
            if not len(active):
                break
            row, close = rows[active, place[active]], similarity[active, place[active]]
            possible = (row >= 0) & (close >= least)
            place[active] = np.where(possible, place[active] + 1, reach)  # by similarity: nothing closer follows
            image = np.maximum(row, 0)
            first = (close == nearness[image]) & (asking[active] < owner[image])
            bids = np.flatnonzero(possible & ((close > nearness[image]) | first))
            order = bids[np.lexsort((asking[active[bids]], -close[bids], row[bids]))]
            won = order[np.r_[True, row[order][1:] != row[order][:-1]]] if len(order) else order
            owner[row[won]], nearness[row[won]] = asking[active[won]], close[won]
        used_up = _held(owner, len(queries))[asking] < k
        longer = used_up & (reach < count) & (rows[:, -1] >= 0) & (similarity[:, -1] >= least)
        ended[asking[used_up & ~longer]] = True
        if longer.any():
            reach = min(count, 2 * reach)
    return Retrieved((owner >= 0).astype(np.int64), owner, np.where(owner >= 0, nearness, np.nan).astype(np.float32))


def _held(owner: NDArray[np.int64], queries: int) -> NDArray[np.int64]:
    """How many images each of the ``queries`` owns."""
    return np.bincount(owner[owner >= 0], minlength=queries)


class Clusters(NamedTuple):
    """k-means of the pool."""

    centroids: NDArray[np.float32]  # [k, d]
    assigned: NDArray[np.int64]  # [N]
    cosine: NDArray[np.float32]  # [N] to the centroid


def _clusters(pool: NDArray[Any], how: ClusterParams, neighbours: NeighbourParams) -> Clusters:
    if how.clusters > len(pool):
        raise VitrailError(f"retrieval.how.clusters={how.clusters}: only {len(pool)} images are left; use fewer")
    return Clusters(*kmeans(pool, KMeans(how.clusters, how.iterations, how.seed, device=neighbours.device)))


def _by_cluster(
    pool: NDArray[Any],
    queries: NDArray[Any],
    how: ClusterParams,
    least: float,
    clusters: Clusters,
    neighbours: NeighbourParams,
) -> Retrieved:
    """Images of the clusters that hold enough of ``queries`` [M, d]; each is credited to its cluster's best query."""
    centroids, assigned, cosine = clusters
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
    query = best_query[assigned[rows]]
    return _best(len(pool), rows, query, _cosines(pool, rows, queries, query))


def _cosines(
    pool: NDArray[Any], rows: NDArray[np.int64], queries: NDArray[Any], query: NDArray[np.int64], block: int = 1 << 16
) -> NDArray[np.float32]:
    """Of ``pool[rows]`` with ``queries[query]``, pair by pair [n]."""
    found = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        found[part] = np.einsum("nd,nd->n", np.float32(pool[rows[part]]), np.float32(queries[query[part]]))
    return found


def _best(count: int, rows: NDArray[np.int64], query: NDArray[np.int64], similarity: NDArray[np.float32]) -> Retrieved:
    order = np.argsort(similarity, kind="stable")  # the best is written last and stays
    best_query = np.full(count, -1, np.int64)
    best = np.full(count, np.nan, np.float32)
    best_query[rows[order]], best[rows[order]] = query[order], similarity[order]
    return Retrieved(np.bincount(rows, minlength=count), best_query, best)
