from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from components.dedup.checks import every_nth
from components.dedup.copy_graph.disjoint import DisjointSet
from components.dedup.copy_graph.edges import EdgeParts, Edges, part_path, write_part
from components.dedup.copy_graph.giants import GiantParams, cut_giants
from components.dedup.copy_graph.graph import (
    component_counts,
    components,
    neighbour_edges,
    size_histogram,
)
from components.dedup.copy_graph.search import GraphSearch, search_edges
from components.dedup.pages.sweep import sweep, table, write_csv
from components.dedup.pool.images import ranges
from components.descriptors.rows import DescriptorRows
from components.errors import VitrailError
from components.executor import ExecutorParams
from components.neighbours import NeighbourParams


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 80), st.integers(0, 120), st.integers(1, 40), st.integers(0, 9999))
def test_components_agree_with_scipy(count: int, edges: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, count, edges), rng.integers(0, count, edges)
    blocks = [
        Edges.of_wholes(a[i : i + block], b[i : i + block], np.ones(len(a[i : i + block]), np.float32))
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


def test_sizes_and_histogram() -> None:
    labels = np.array([0, 0, 0, 3, 3, 5])
    counts = component_counts(labels)
    assert counts.tolist() == [3, 0, 0, 2, 0, 1]
    assert size_histogram(counts) == {"1": 1, "2": 1, "3-4": 1}
    assert size_histogram(component_counts(np.zeros(100, np.int64)))["65-128"] == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(0, 120), st.integers(0, 9999))
def test_the_disjoint_set_is_the_same_in_a_file(
    tmp_path_factory: pytest.TempPathFactory, count: int, edges: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, count, (2, edges))
    blocks = [Edges.of_wholes(a, b, np.ones(edges, np.float32))]
    path = tmp_path_factory.mktemp("sets") / "parents"
    assert np.array_equal(components(count, blocks, 0.5, path), components(count, blocks, 0.5))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(1, 150), st.integers(2, 12), st.integers(0, 9999))
def test_giants_are_cut_and_nothing_else(count: int, number: int, over: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, count, (2, number))
    edges = [Edges.of_wholes(a, b, rng.uniform(0.5, 1, number).astype(np.float32))]
    before = components(count, edges, 0.5)
    params = GiantParams(over=over, step=0.1, ceiling=0.9)
    after, cuts = cut_giants(before, edges, 0.5, params)
    sizes = np.bincount(before, minlength=count)
    assert sorted(cut.component for cut in cuts) == np.flatnonzero(sizes > over).tolist()
    small = sizes[before] <= over
    assert np.array_equal(before[small], after[small])
    assert (before[after] == before).all()  # parts lie inside what they were cut from
    assert (after[after] == after).all()  # and are named by a row of theirs
    still = np.bincount(after, minlength=count)[after] > over
    at_ceiling = components(count, edges, 0.9)
    for row in np.flatnonzero(still):  # giant still: tied at the ceiling
        assert np.array_equal(after == after[row], at_ceiling == at_ceiling[row])
    for cut in cuts:
        parts = np.unique(after[before == cut.component])
        assert cut.parts == len(parts)
        assert cut.largest == np.bincount(after[before == cut.component]).max()


def test_edges_on_disk_come_back_and_other_files_are_refused(tmp_path: Path) -> None:
    found = Edges.of_wholes(np.array([5, 1, 5]), np.array([1, 5, 2]), np.array([0.7, 0.9, 0.8], np.float32)).canonical()
    assert found.a.tolist() == [1, 2]
    assert found.b.tolist() == [5, 5]
    np.testing.assert_allclose(found.similarity, [0.9, 0.8])
    write_part(part_path(tmp_path, 0, 6), found)
    (back,) = EdgeParts.of(tmp_path)
    assert all(np.array_equal(x, y) for x, y in zip(back, found, strict=True))
    part_path(tmp_path, 6, 7).write_bytes(b"cut short")
    with pytest.raises(VitrailError, match="not a readable part"):
        [*EdgeParts.of(tmp_path)]
    with pytest.raises(VitrailError, match="no edges"):
        EdgeParts.of(tmp_path / "none")


def test_ranges_are_whole_shards_of_a_least_size() -> None:
    class Pool:
        def __init__(self, shards: list[str], each: int) -> None:
            self.shards, self.each = shards, each

        def __len__(self) -> int:
            return len(self.shards)

        def batches(self, columns: list[str]) -> list[pa.Table]:
            starts = range(0, len(self.shards), self.each)
            return [pa.table({"shard": self.shards[start : start + self.each]}) for start in starts]

    shards = ["a"] * 3 + ["b"] * 2 + ["c"] * 4 + ["d"]
    for each in (1, 2, 3, 99):
        pool: Any = Pool(shards, each)
        assert ranges(pool, 1) == [(0, 3), (3, 5), (5, 9), (9, 10)]
        assert ranges(pool, 4) == [(0, 5), (5, 9), (9, 10)]
        assert ranges(pool, 99) == [(0, 10)]


@pytest.mark.parametrize("flat_up_to", [10_000, 100])
def test_edges_are_those_of_brute_force_and_a_stopped_search_carries_on(tmp_path: Path, flat_up_to: int) -> None:
    rng = np.random.default_rng(0)
    pool = rng.normal(size=(700, 1, 16)).astype(np.float32)
    pool[600:, 0] = pool[:100, 0] + 0.4 * rng.normal(size=(100, 16))
    pool = (pool / np.linalg.norm(pool, axis=2, keepdims=True)).astype(np.float16)
    np.save(tmp_path / "rows.npy", pool)
    rows, parts = DescriptorRows(tmp_path / "rows.npy"), [(0, 300), (300, 700)]
    near = NeighbourParams(flat_up_to=flat_up_to, pq_bytes=4, candidates=8)
    run = lambda: search_edges(rows, "d", GraphSearch(20, 0.75, near), parts, tmp_path, ExecutorParams(workers=0))  # noqa: E731
    found = run()
    assert (tmp_path / "index/merged").exists() == (flat_up_to == 100)
    exact = pool[:, 0].astype(np.float32) @ pool[:, 0].astype(np.float32).T
    a, b = np.nonzero(np.triu(exact > 0.75, 1))
    pairs = {(int(x), int(y)) for block in found for x, y in zip(block.a, block.b, strict=True)}
    truth = {*zip(a.tolist(), b.tolist(), strict=True)}
    assert pairs <= truth
    assert len(pairs) >= 0.98 * len(truth)
    if flat_up_to == 10_000:
        assert pairs == truth
    kept = found.parts[0].stat().st_mtime_ns
    found.parts[1].unlink()
    again = run()
    assert again.parts[0].stat().st_mtime_ns == kept
    assert {(int(x), int(y)) for block in again for x, y in zip(block.a, block.b, strict=True)} == pairs


def test_the_sweep_says_what_each_threshold_would_drop(tmp_path: Path) -> None:
    edges = [Edges.of_wholes(np.array([0, 1, 3]), np.array([1, 2, 4]), np.array([0.9, 0.7, 0.6], np.float32))]
    labels = components(5, edges, 0.65)
    outcomes = sweep(edges, np.array([0.1, 0.1, 0.8, 0.1, 0.1]), [0.85, 0.5], labels)
    assert [tuple(one) for one in outcomes] == [(0.5, 3, 2, 3, 1, 3), (0.85, 1, 1, 2, 0, 0)]
    assert "0.850" in table(outcomes)
    write_csv(outcomes, tmp_path / "sweep.csv")
    assert (tmp_path / "sweep.csv").read_text().splitlines()[1] == "0.5,3,2,3,1,3"


def test_a_sample_of_edges_runs_through_all_parts(tmp_path: Path) -> None:
    parts = []
    for start, stop in ((0, 4), (4, 5), (5, 10)):
        rows = np.arange(start, stop)
        made = Edges.of_wholes(rows, rows + 1, np.full(len(rows), 0.9, np.float32))
        parts.append(write_part(part_path(tmp_path, start, stop), made))
    assert every_nth(EdgeParts(parts), 10)["a"].to_pylist() == [*range(10)]
    assert every_nth(EdgeParts(parts), 4)["a"].to_pylist() == [0, 3, 6, 9]
    assert every_nth(EdgeParts(parts), 1)["a"].to_pylist() == [0]
    assert every_nth(EdgeParts([]), 5).num_rows == 0


def test_k_counts_images_whatever_number_of_windows_is_found() -> None:
    rng = np.random.default_rng(0)
    centre = rng.normal(size=24)
    pool = centre + 0.3 * rng.normal(size=(40, 1, 24)) + 0.02 * rng.normal(size=(40, 12, 24))
    pool = pool / np.linalg.norm(pool, axis=2, keepdims=True)
    exact = np.einsum("id,jrd->ijr", pool[:, 0], pool).max(2)
    np.fill_diagonal(exact, -1)
    for k in (1, 5, 39):
        nearest = np.argsort(-exact, axis=1)[:, :k]
        truth = {(min(i, int(j)), max(i, int(j))) for i in range(40) for j in nearest[i] if exact[i, j] > 0.5}
        blocks = [*neighbour_edges(pool, k, 0.5, NeighbourParams(), block=16)]
        pairs = {(int(a), int(b)) for block in blocks for a, b in zip(block.a, block.b, strict=True)}
        assert pairs == truth
        assert len(pairs) > 10 * k**0.5
