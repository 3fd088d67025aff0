"""Windows cover a picture whatever its sides, and maps that are joined again are the maps that were cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.image import reconstruct_from_patches_2d

from components.evaluation.dense.windows import join, nearest_to, random_window, shorter_side, smooth_to, windows
from components.learning.crops import resize


@given(height=st.integers(8, 40), width=st.integers(8, 40), stride=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_what_is_cut_is_joined_again(height: int, width: int, stride: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    cut = windows(rgb, 8, stride)
    assert min(cut.size) == 8
    assert cut.squares.shape[1:] == (8, 8, 3)
    parts = [square.transpose(2, 0, 1).astype(np.float32) for square in cut.squares]
    whole = shorter_side(rgb, 8).transpose(2, 0, 1)
    assert np.allclose(join(parts, cut), whole, atol=1e-3)


def test_overlaps_are_means_as_in_scikit_learn() -> None:
    parts = np.random.default_rng(0).random((9, 4, 4)).astype(np.float32)
    cut = windows(np.zeros((6, 6, 3), np.uint8), 4, 1, scale=1.5)
    assert cut.size == (6, 6)
    ours = join([part[None] for part in parts], cut)[0]
    assert np.allclose(ours, reconstruct_from_patches_2d(parts, (6, 6)), atol=1e-6)


def test_a_square_picture_is_one_window_with_the_pixels_of_the_other_rooms() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (50, 50, 3), np.uint8)
    (square,) = windows(rgb, 16, 8).squares
    assert (square == resize(rgb, 16)).all()
    assert windows(rgb, 16, 8, scale=0.5).size == (16, 16)


def test_values_follow_their_picture() -> None:
    values = np.arange(12).reshape(3, 4)
    assert (nearest_to(values, (6, 8)) == values.repeat(2, 0).repeat(2, 1)).all()
    assert np.allclose(smooth_to(np.full((2, 3, 4), 7, np.float32), (5, 9)), 7)
    rgb = np.zeros((8, 30, 3), np.uint8)
    rgb[:, 15:] = 255
    square, mask = random_window(rgb, rgb[..., 0] > 0, 8, np.random.default_rng(0))
    assert ((square[..., 0] > 127) == mask).all()
