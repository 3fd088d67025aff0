from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.dedup.decisions.balance import BalanceParams, LevelParams, balance, hierarchy, sample, water_fill
from components.errors import VitrailError
from components.neighbours import KMeans, kmeans
from components.params import parse_params


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(0, 400), st.integers(0, 99))
def test_water_fill(sizes: list[int], target: int, seed: int) -> None:
    given_sizes = np.array(sizes)
    for generator in (None, np.random.default_rng(seed)):
        shares = water_fill(given_sizes, target, generator)
        assert shares.sum() == min(target, sum(sizes))
        assert (shares <= given_sizes).all()
        assert (shares >= 0).all()
        # Equal where the sizes allow: one that got less than another's share less one is used up.
        assert (shares[shares < shares.max() - 1] == given_sizes[shares < shares.max() - 1]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(6, 60), st.integers(1, 5), st.integers(0, 99))
def test_kmeans_is_lloyds_algorithm(count: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3)).astype(np.float32)
    start = points[rng.choice(count, k, replace=False)]
    centroids, assigned, distance = kmeans(points, KMeans(k, 4, 0, spherical=False), start)
    ours = start.astype(np.float64)
    emptied = False
    for _ in range(4):
        nearest = ((points[:, None] - ours[None]) ** 2).sum(2).argmin(1)
        emptied = emptied or len(np.unique(nearest)) < k
        ours = np.stack([points[nearest == c].mean(0) if (nearest == c).any() else ours[c] for c in range(k)])
    if not emptied:  # what replaces an empty cluster is each library's own choice
        np.testing.assert_allclose(centroids, ours, atol=1e-4)
    squared = ((points[:, None] - centroids[None]) ** 2).sum(2)
    np.testing.assert_allclose(distance, squared.min(1), atol=1e-4)
    np.testing.assert_allclose(squared[np.arange(count), assigned], squared.min(1), atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(6, 60), st.integers(1, 5), st.integers(0, 99))
def test_spherical_kmeans_is_lloyds_algorithm_on_the_sphere(count: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    start = points[rng.choice(count, k, replace=False)]
    centroids, assigned, cosine = kmeans(points, KMeans(k, 4, 0, spherical=True), start)
    ours = start.astype(np.float64)
    emptied = False
    for _ in range(4):
        nearest = (points @ ours.T).argmax(1)
        emptied = emptied or len(np.unique(nearest)) < k
        ours = np.stack([points[nearest == c].sum(0) if (nearest == c).any() else ours[c] for c in range(k)])
        ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    if not emptied:
        np.testing.assert_allclose(centroids, ours, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(cosine, (points @ centroids.T).max(1), atol=1e-5)
    np.testing.assert_allclose((points * centroids[assigned]).sum(1), cosine, atol=1e-5)


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Four groups of very different sizes."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), [900, 60, 30, 10])
    return (np.eye(4)[group] * 5 + 0.3 * rng.normal(size=(1000, 4))).astype(np.float32), group


def test_a_balanced_sample_is_even_over_what_is_there() -> None:
    points, group = blobs()
    levels = [LevelParams(clusters=40, resampling=2, points=5), LevelParams(clusters=4, resampling=2, points=3)]
    params = BalanceParams(images=100, levels=levels)
    chosen = balance(points, params)
    assert len(chosen) == 100 == len(set(chosen.tolist()))
    counts = np.bincount(group[chosen], minlength=4)
    assert counts[3] == 10  # all of the smallest
    assert counts.max() <= 40  # and the largest, nine tenths of the points, got about what others got
    assert np.array_equal(balance(points, params), chosen)  # the seed decides
    assert len(balance(points, params.model_copy(update={"images": 5000}))) == 1000


def test_resampling_spreads_the_centroids_over_the_space() -> None:
    rng = np.random.default_rng(0)
    dense, sparse = 0.5 * rng.normal(size=(3000, 2)), rng.uniform(-6, 6, size=(300, 2))
    points = np.concatenate([dense, sparse]).astype(np.float32)
    outside = []  # centroids beyond the dense tenth of the square, which holds ten elevenths of the points
    for resampling in (0, 1, 8):
        level = LevelParams(clusters=60, resampling=resampling, points=3)
        (found,) = hierarchy(points, BalanceParams(images=60, levels=[level]))
        outside.append(int((np.abs(found.centroids).max(1) > 1.7).sum()))
    assert outside[0] < outside[1] < outside[2]
    assert outside[0] <= 42
    assert outside[2] >= 50  # evenly over the square: 55 of 60


def test_the_closest_images_of_a_cluster_come_first() -> None:
    points, _ = blobs()
    params = BalanceParams(images=8, levels=[LevelParams(clusters=4)], leaf="closest")
    levels = hierarchy(points, params)
    chosen = sample(levels, params)
    for cluster in range(4):
        inside = np.flatnonzero(levels[0].parent == cluster)
        taken = np.intersect1d(chosen, inside)
        assert levels[0].distance[taken].max() <= np.sort(levels[0].distance[inside])[len(taken) - 1]


def test_what_cannot_be_balanced_is_said() -> None:
    with pytest.raises(VitrailError, match="11 clusters of 10 images"):
        balance(np.eye(10, dtype=np.float32), BalanceParams(images=2, levels=[LevelParams(clusters=11)]))
    with pytest.raises(VitrailError, match="fewer clusters than the one below"):
        parse_params({"images": 1, "levels": [{"clusters": 4}, {"clusters": 4}]}, BalanceParams, "test")
    alike = np.ones((20, 3), np.float32)
    assert len(balance(alike, BalanceParams(images=7, levels=[LevelParams(clusters=3, resampling=1)]))) == 7
    bad = np.ones((20, 3), np.float32)
    bad[4, 1] = np.nan
    with pytest.raises(VitrailError, match="row 4 is NaN"):
        balance(bad, BalanceParams(images=7, levels=[LevelParams(clusters=3)]))
