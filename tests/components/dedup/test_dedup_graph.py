from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from components.dedup.graph import (
    DisjointSet,
    Edges,
    component_sizes,
    components,
    neighbour_edges,
    representatives,
    size_histogram,
)
from components.neighbours import NeighbourParams


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 80), st.integers(0, 120), st.integers(1, 40), st.integers(0, 9999))
def test_components_agree_with_scipy(count: int, edges: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, count, edges), rng.integers(0, count, edges)
    blocks = [
        Edges(a[i : i + block], b[i : i + block], np.ones(len(a[i : i + block]), np.float32))
        for i in range(0, edges, block)
    ]
    labels = components(count, blocks, 0.5)
    _, truth = connected_components(coo_array((np.ones(edges), (a, b)), shape=(count, count)), directed=False)
    smallest = np.array([np.flatnonzero(truth == c)[0] for c in truth])
    assert np.array_equal(labels, smallest)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_long_chain_is_one_component(shuffled: bool) -> None:
    count = 200_000
    a = np.arange(count - 1)
    if shuffled:
        np.random.default_rng(0).shuffle(a)
    sets = DisjointSet(count)
    for start in range(0, count, 10_000):
        sets.union(a[start : start + 10_000], a[start : start + 10_000] + 1)
    assert not sets.labels().any()


def test_edges_leave_out_the_row_itself_and_reach_as_far_as_the_set() -> None:
    one = np.ones((1, 1, 4), np.float16) / 2
    assert [len(e.a) for e in neighbour_edges(one, 64, 0.5, NeighbourParams())] == [0]
    alike = np.repeat(one, 7, axis=0)
    edges = list(neighbour_edges(alike, 64, 0.5, NeighbourParams(), block=3))
    assert all((e.a != e.b).all() for e in edges)
    assert not components(7, edges, 0.5).any()  # all alike: one component
    assert len(set(components(7, edges, 1.5).tolist())) == 7


def test_the_largest_then_the_smallest_hash_is_kept() -> None:
    labels = np.array([0, 0, 0, 3, 3, 5])
    areas = np.array([10, 20, 20, 7, 7, 1], np.int32)
    digests = np.array(["a", "c", "b", "z", "y", "q"])
    assert representatives(labels, areas, digests).tolist() == [2, 2, 2, 4, 4, 5]


def test_sizes_and_histogram() -> None:
    labels = np.array([0, 0, 0, 3, 3, 5])
    assert component_sizes(labels).tolist() == [3, 2, 1]
    assert size_histogram(labels) == {"1": 1, "2": 1, "3-4": 1}
    assert sum(size_histogram(np.zeros(100, np.int64)).values()) == 1
