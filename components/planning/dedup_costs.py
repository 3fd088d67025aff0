"""Bytes and seconds of each step of dedup, as products of counts and rates: every function can be checked by hand.

The counts are what the code does, not what it should do: where a step holds a table in memory, it is counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from components.planning.dedup_rates import RESCORED, DedupRates

EDGES_PER_IMAGE = 2.0  # over the floor; on LVD-142M's scale one image in two is a copy (1.3e9 -> 744M)
EDGE_BYTES = 24  # two row numbers, a cosine and two numbers of views, before compression
ITERATIONS = 10  # of the k-means that trains the lists
GRAPH_LINKS = 272  # bytes a node of an HNSW32 graph: 64 links at the lowest level, few above
GRAPH_WALK = 512  # centres that a walk to the nearest one compares: efSearch 16, some 32 links each
GRAPH_STEPS = 16  # and for each list more
GRAPH_PRICE = 160  # centres in a product that a list found through the graph must cost less than (neighbours/index.py)
# Bytes an image of the files that decisions and manifest are joined from, and of these two, by `perf dedup_joins`
JOIN_FILES, DECIDED = 92, 40


@dataclass(frozen=True)
class Machines:
    """What a plan is for: rates of one machine, times how many such machines the cores are."""

    rates: DedupRates
    scale: float  # cores planned for / cores of the rates

    @property
    def flops(self) -> float:
        return self.rates.gigaflops * 1e9 * self.scale

    @property
    def memory(self) -> float:
        return self.rates.memory * self.scale


@dataclass(frozen=True)
class Join:
    """A search of ``queries`` descriptors among ``rows``."""

    rows: int
    queries: int
    dim: int
    lists: int  # 0: exact
    probes: int  # lists a query visits
    graph: bool  # HNSW over the lists' centres
    code: int  # bytes of a coded descriptor
    train: int  # descriptors that the lists are trained on


# -- bytes


def descriptor_bytes(rows: int, dim: int) -> float:
    """fp16, on disk and memory-mapped."""
    return 2.0 * rows * dim


def index_bytes(join: Join) -> float:
    """Codes and row numbers of 8 bytes; the descriptors in fp32 where the search is exact."""
    return join.rows * (join.code + 8.0 if join.lists else 4.0 * join.dim)


def centre_bytes(join: Join) -> float:
    """The lists' centres in fp32, and the graph over them."""
    return join.lists * (4.0 * join.dim + (GRAPH_LINKS if join.graph else 0))


def training_bytes(join: Join) -> float:
    """The sample that the lists are trained on, fp32."""
    return 4.0 * join.train * join.dim


def join_disk_bytes(images: int) -> float:
    """The files that decisions and manifest are joined from, and these two; what a join spills comes on top."""
    return float(images * (JOIN_FILES + DECIDED))


def label_bytes(images: int) -> float:
    """Components, the leak and the kept row of each, and one array more for a while: 4 bytes each, 8 from 2^32."""
    return images * (16.0 if images < 1 << 32 else 32.0)


def kmeans_bytes(rows: int, clusters: int, dim: int) -> float:
    """All points and centroids in fp32; cluster, cosine and order of each point."""
    return 4.0 * dim * (rows + clusters) + 28.0 * rows


def edge_bytes(images: int) -> float:
    """The parts of the edges, before compression."""
    return images * EDGES_PER_IMAGE * EDGE_BYTES


# -- seconds


def product_seconds(a: int, b: int, dim: int, on: Machines) -> float:
    """All inner products of ``a`` with ``b`` descriptors."""
    return 2.0 * a * b * dim / on.flops


def kmeans_seconds(rows: int, clusters: int, dim: int, iterations: int, on: Machines) -> float:
    """Lloyd's algorithm: every point with every centre, each iteration."""
    return iterations * product_seconds(rows, clusters, dim, on)


def fill_seconds(join: Join, on: Machines) -> float:
    """Each row to its nearest list, by one product with all centres or one walk through the graph; written twice."""
    if not join.lists:
        return 0.0
    walked = join.rows * GRAPH_WALK / (on.rates.rescored * on.scale)
    nearest = walked if join.graph else product_seconds(join.rows, join.lists, join.dim, on)
    return nearest + 2 * index_bytes(join) / 1e6 / on.rates.megabytes


def centres_seconds(join: Join, on: Machines) -> float:
    """The lists to visit: by the product with all centres, or by the graph where few are wanted."""
    if join.graph and join.probes * GRAPH_PRICE < join.lists:
        return join.queries * join.probes * GRAPH_STEPS / (on.rates.rescored * on.scale)
    return product_seconds(join.queries, join.lists, join.dim, on)


def codes_seconds(join: Join, on: Machines) -> float:
    """The codes in the lists visited; rates are for codes of 16 bytes."""
    if not join.lists:
        return 0.0
    scanned = join.rows * join.probes / join.lists
    return join.queries * scanned * (join.code / 16) / (on.rates.codes * on.scale)


def rescore_seconds(join: Join, on: Machines) -> float:
    """Candidates' exact descriptors, in no order: from memory where they fit in half of it, else from disk."""
    if not join.lists:
        return 0.0
    in_memory = descriptor_bytes(join.rows, join.dim) <= on.memory / 2
    return join.queries * RESCORED / ((on.rates.rescored if in_memory else on.rates.reads) * on.scale)


def search_seconds(join: Join, on: Machines) -> float:
    """All of a search but building its index."""
    exact = 0.0 if join.lists else product_seconds(join.queries, join.rows, join.dim, on)
    return exact + centres_seconds(join, on) + codes_seconds(join, on) + rescore_seconds(join, on)


def build_seconds(join: Join, on: Machines) -> float:
    """Training the lists and filling them."""
    return kmeans_seconds(join.train, join.lists, join.dim, ITERATIONS, on) + fill_seconds(join, on)


def component_seconds(images: int, on: Machines) -> float:
    """On one core, whatever there are."""
    return images * EDGES_PER_IMAGE / on.rates.edges


def balance_seconds(images: int, levels: list[tuple[int, int, int]], dim: int, iterations: int, on: Machines) -> float:
    """Of levels (clusters, resampling, points): k-means of what is below; each resampling fits and assigns anew."""
    spent, below = 0.0, images
    for clusters, resampling, points in levels:
        spent += kmeans_seconds(below, clusters, dim, iterations, on) + product_seconds(below, clusters, dim, on)
        chosen = min(below, points * clusters)
        again = kmeans_seconds(chosen, clusters, dim, iterations, on) + product_seconds(below, clusters, dim, on)
        spent += resampling * again
        below = clusters
    return spent


def gpus_for(join: Join, gpu_bytes: float) -> int:
    """GPUs of ``gpu_bytes`` memory over which codes, row numbers and centres are sharded, a fifth of each left free."""
    return max(1, math.ceil((index_bytes(join) + centre_bytes(join)) / (0.8 * gpu_bytes)))
