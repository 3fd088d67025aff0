"""Patches and k-means tell textures apart without a network."""

from __future__ import annotations

import numpy as np
import pytest

from components.errors import VitrailError
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.features.patch_kmeans import PatchKmeansParams, fit_patch_kmeans
from components.evaluation.image_level.knn import knn_predict

PARAMS = PatchKmeansParams(side=16, patch=4, centroids=12, patches=500)


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy stripes, upright or lying, at any place: no pixel by itself tells which."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    lines = (np.arange(16) + generator.integers(0, 4, (count, 1))) % 4 < 2
    pictures = np.broadcast_to(lines[:, None, :], (count, 16, 16)) * 120.0
    pictures = np.where(labels[:, None, None] == 1, pictures.transpose(0, 2, 1), pictures)
    noisy = pictures[..., None] + 60 + generator.normal(0, 15, (count, 16, 16, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


def test_it_tells_textures_apart_wherever_they_begin() -> None:
    (train, known), (test, truth) = stripes(60, 0), stripes(40, 1)
    extractor = fit_patch_kmeans(train, PARAMS)
    rows = extractor.features(test)
    assert rows.shape == (40, 4 * 12)
    assert (rows >= 0).all()
    assert (knn_predict(LabelledFeatures(extractor.features(train), known), rows, 5) == truth).mean() > 0.95
    assert (fit_patch_kmeans(train, PARAMS).features(test) == rows).all()


def test_brightness_and_contrast_hardly_matter() -> None:
    train, _ = stripes(30, 0)
    extractor = fit_patch_kmeans(train, PARAMS)
    plain, dim = extractor.features(train), extractor.features((train * 0.5).astype(np.uint8))
    cosines = (plain * dim).sum(1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(dim, axis=1)
    assert cosines.min() > 0.98


def test_pictures_without_patches_to_tell_apart_are_refused() -> None:
    with pytest.raises(VitrailError, match="fewer than 12 different patches"):
        fit_patch_kmeans(np.zeros((3, 16, 16, 3), np.uint8), PARAMS)
