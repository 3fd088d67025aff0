"""Thresholds by the pool itself: low where pictures differ, high where all look alike, never above the ceiling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.dedup.copy_graph.automatic import AutoParams, automatic, nearest_others
from components.descriptors.rows import DescriptorRows
from components.neighbours import NeighbourParams

NEAR = NeighbourParams()


def rows(folder: Path, pieces: np.ndarray) -> DescriptorRows:
    """``pieces`` [N, R, d], made unit length, on disk."""
    unit = pieces / np.linalg.norm(pieces, axis=2, keepdims=True)
    np.save(folder / "rows.npy", unit.astype(np.float16))
    return DescriptorRows(folder / "rows.npy")


def random(count: int, each: int, dim: int, shared: float = 0.0) -> np.ndarray:
    """Random directions that have ``shared`` of one direction in common."""
    generator = np.random.default_rng(0)
    pieces = generator.normal(size=(count, 1, dim)) + 0.05 * generator.normal(size=(count, each, dim))
    pieces[..., 0] += shared * np.sqrt(dim)
    return pieces


def test_pictures_that_differ_get_the_lowest_thresholds(tmp_path: Path) -> None:
    found = automatic(rows(tmp_path, random(200, 3, 128)), AutoParams(), NEAR)
    assert (found.at_self, found.at_relative, found.neighboured) == (0.65, 0.55, 0.0)


def test_pictures_that_look_alike_raise_both_until_few_have_a_neighbour(tmp_path: Path) -> None:
    found = automatic(rows(tmp_path, random(200, 2, 64, shared=1.5)), AutoParams(), NEAR)
    assert 0.65 < found.at_self == found.at_relative <= 0.95
    assert found.neighboured <= 0.1


def test_a_pool_of_copies_stays_below_the_ceiling_so_that_copies_are_found(tmp_path: Path) -> None:
    pieces = np.repeat(random(60, 1, 128), 2, axis=0)
    found = automatic(rows(tmp_path, pieces), AutoParams(), NEAR)
    assert found.at_self == 0.95
    assert found.neighboured == 1.0


def test_the_nearest_other_image_is_no_window_of_ones_own(tmp_path: Path) -> None:
    pieces = random(40, 4, 32)
    stored = rows(tmp_path, pieces)
    images = np.asarray(stored.open(), np.float32)
    cosine = np.einsum("nd,mrd->nmr", images[:, 0], images).max(2)
    np.fill_diagonal(cosine, -1)
    np.testing.assert_allclose(nearest_others(stored, AutoParams(), NEAR), cosine.max(1), atol=1e-5)


def test_a_pool_of_one_has_no_neighbours(tmp_path: Path) -> None:
    found = automatic(rows(tmp_path, random(1, 3, 16)), AutoParams(), NEAR)
    assert (found.at_self, found.images) == (0.65, 0)


def test_thresholds_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="least_relative <= least_self <= most"):
        AutoParams(least_self=0.5, least_relative=0.6)
