from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import VitrailError
from components.neighbours import NeighbourParams, factory_for, kmeans, knn


def unit(rng: np.random.Generator, count: int, dim: int, dtype: type = np.float32) -> np.ndarray:
    rows = rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(2, 24), st.integers(0, 999), st.data())
def test_flat_is_brute_force(count: int, asked: int, dim: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    base, queries = unit(rng, count, dim, np.float16), unit(rng, asked, dim, np.float16)
    k = data.draw(st.integers(1, count))
    similarities, rows = knn(base, queries, k, NeighbourParams(block=7))
    exact = queries.astype(np.float32) @ base.astype(np.float32).T
    np.testing.assert_allclose(similarities, -np.sort(-exact, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, rows, axis=1), similarities, atol=1e-6)
    assert all(len(set(row)) == k for row in rows.tolist())


def test_equal_similarities_come_by_row() -> None:
    base = np.repeat(unit(np.random.default_rng(0), 1, 8), 5, axis=0)
    _, rows = knn(base, base[:2], 5, NeighbourParams())
    assert rows.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("factory", ["IVF4_HNSW32,PQ2", "OPQ2_8,IVF4,PQ2", "IVF16,Flat"])
def test_coded_candidates_carry_exact_similarities(factory: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "base.npy"
    np.save(path, unit(rng, 10_000, 8, np.float16))
    base = np.load(path, mmap_mode="r")
    noisy = base[:50].astype(np.float32) + 0.05 * unit(rng, 50, 8)
    queries = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    similarities, rows = knn(base, queries, 5, NeighbourParams(factory=factory, nprobe=16, candidates=100, block=16))
    assert (rows[:, 0] == np.arange(50)).mean() >= 0.98  # the planted neighbour is found
    found = rows >= 0
    exact = queries @ base.astype(np.float32).T
    np.testing.assert_allclose(similarities[found], np.take_along_axis(exact, rows, 1)[found], atol=1e-5)


def test_the_index_grows_with_the_set() -> None:
    params = NeighbourParams(flat_up_to=1000)
    assert factory_for(1000, 512, params, gpu=False) == "Flat"
    assert factory_for(500_000, 512, params, gpu=False) == "IVF4096_HNSW32,PQ64"
    assert factory_for(5_000_000, 512, params, gpu=True) == "IVF65536,PQ64"
    rotated = NeighbourParams(flat_up_to=1000, opq_dim=256)
    assert factory_for(10**9, 512, rotated, gpu=False) == "OPQ64_256,IVF1048576_HNSW32,PQ64"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.__setitem__((3, 1), np.nan), "row 3 is NaN"),
        (lambda b: b.__setitem__(5, 0), "row 5 is all zeros"),
    ],
)
def test_bad_rows_are_named(change: object, words: str) -> None:
    base = unit(np.random.default_rng(0), 10, 4)
    change(base)  # type: ignore[operator]
    with pytest.raises(VitrailError, match=words):
        knn(base, base[:1], 1, NeighbourParams())


def test_impossible_requests_say_what_to_do() -> None:
    base = unit(np.random.default_rng(0), 10, 4)
    with pytest.raises(VitrailError, match="k=11 of 10"):
        knn(base, base, 11, NeighbourParams())
    with pytest.raises(VitrailError, match="4 dimensions, queries 3"):
        knn(base, base[:, :3], 1, NeighbourParams())
    with pytest.raises(VitrailError, match="N > 0"):
        knn(base[:0], base, 1, NeighbourParams())
    with pytest.raises(VitrailError, match="needs 156 training vectors, there are 10"):
        knn(base, base, 1, NeighbourParams(factory="IVF4,Flat"))
    with pytest.raises(VitrailError, match="refuses it for 4 dimensions"):
        knn(base, base, 1, NeighbourParams(factory="IVF4,Nonsense"))
    with pytest.raises(VitrailError, match="does not divide"):
        knn(base, base, 1, NeighbourParams(flat_up_to=1, pq_bytes=3))
    with pytest.raises(VitrailError, match="11 clusters of 10"):
        kmeans(base, 11, iterations=1, seed=0)


def test_kmeans_finds_planted_clusters() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 200)
    points = np.eye(8, dtype=np.float32)[truth] + 0.05 * rng.normal(size=(200, 8)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    centroids, assigned, cosine = kmeans(points, 4, iterations=20, seed=0)
    assert centroids.shape == (4, 8)
    pairs = {(int(t), int(c)) for t, c in zip(truth, assigned, strict=True)}
    assert len(pairs) == 4  # one cluster a planted group
    np.testing.assert_allclose(cosine, (points * centroids[assigned]).sum(1), atol=1e-5)
