"""Components are scikit-learn's, and the picture shows what was planted."""

from __future__ import annotations

import numpy as np

from components.evaluation.features.pca import _project, pca_pictures


def test_projections_are_scikit_learns_up_to_sign() -> None:
    from sklearn.decomposition import PCA

    rows = np.random.default_rng(0).normal(size=(200, 10)) * np.linspace(3, 0.1, 10)
    ours, theirs = _project(rows, rows, 3), PCA(3).fit_transform(rows)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-8)


def test_an_object_in_the_middle_is_kept_and_the_rest_is_black() -> None:
    generator = np.random.default_rng(0)
    planted = np.zeros((2, 8, 8), bool)
    planted[:, 2:6, 2:6] = True
    patches = generator.normal(size=(2, 8, 8, 16)) * 0.1
    patches[planted] += generator.normal(size=16) * 3
    pictures = pca_pictures(patches.reshape(2, 64, 16), (8, 8), 32, foreground=True)
    assert pictures.shape == (2, 32, 32, 3)
    assert pictures.dtype == np.uint8
    shown = pictures[:, ::4, ::4].any(-1)
    assert (shown[~planted] == 0).all()
    assert shown[planted].mean() > 0.9
    everything = pca_pictures(patches.reshape(2, 64, 16), (8, 8), 32)
    assert everything[:, 2, 2].any()


def test_parts_alike_have_colours_alike_in_all_pictures() -> None:
    generator = np.random.default_rng(1)
    parts = generator.normal(size=(4, 16)) * 5  # four points span three components
    where = generator.integers(0, 4, (3, 6 * 9))
    pictures = pca_pictures(parts[where] + 0.05 * generator.normal(size=(3, 54, 16)), (6, 9), 90)
    assert pictures.shape == (3, 60, 90, 3)
    colours = pictures[:, 5::10, 5::10].reshape(3, 54, 3).astype(int)
    means = np.stack([colours[where == part].mean(0) for part in range(4)])
    for part in range(4):
        assert np.abs(colours[where == part] - means[part]).max() < 60
    assert min(np.abs(means[a] - means[b]).max() for a in range(4) for b in range(a)) > 80
