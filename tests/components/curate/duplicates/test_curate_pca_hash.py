"""The PCA hash: invariances, copies near and others far on real photographs, frozen artifacts, and pair search."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curate.duplicates.pca_hash import HashParams, fit, load, pairs_within, thumbnail
from components.errors import VitrailError
from components.images.decode import DecodeLimits, decode, encode_jpeg

PARAMS = HashParams(min_images=8)


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.bitwise_count(one ^ other).sum(-1, dtype=np.int64)


@pytest.fixture(scope="module")
def cells() -> list[np.ndarray]:
    spec = importlib.util.find_spec("elpv_dataset")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data/images"
    return [decode(path.read_bytes(), DecodeLimits()) for path in sorted(folder.glob("*.png"))[::8]]


def test_copies_are_near_and_other_cells_are_not(cells: list[np.ndarray]) -> None:
    thumbnails = np.stack([thumbnail(rgb) for rgb in cells])
    hashing = fit(thumbnails, HashParams())
    assert hashing is not None
    hashes, usable = hashing(thumbnails)
    assert usable.all()
    radius = HashParams().radius
    assert list(pairs_within(hashes, radius)) == []  # cells look alike, and yet none is taken for another
    for change in (
        lambda rgb: decode(encode_jpeg(rgb, 75), DecodeLimits()),
        lambda rgb: cv2.resize(rgb, (200, 200), interpolation=cv2.INTER_AREA),
    ):
        copies, _ = hashing(np.stack([thumbnail(change(rgb)) for rgb in cells]))
        assert (distance(hashes, copies) <= radius).mean() > 0.85


def test_brightness_and_contrast_do_not_matter(cells: list[np.ndarray]) -> None:
    thumbnails = np.stack([thumbnail(rgb) for rgb in cells[:64]]) // 2
    hashing = fit(thumbnails, PARAMS)
    assert hashing is not None
    assert np.array_equal(hashing(thumbnails)[0], hashing(thumbnails + 40)[0])
    assert distance(hashing(thumbnails)[0], hashing(thumbnails * 2)[0]).max() <= 1  # float rounding at a border


def test_flat_images_have_no_hash_and_too_few_give_none() -> None:
    flat = np.full((20, 1024), 77, np.uint8)
    assert fit(flat, PARAMS) is None
    rng = np.random.default_rng(0)
    mixed = np.concatenate([flat, rng.integers(0, 256, (20, 1024), dtype=np.uint8)])
    hashing = fit(mixed, PARAMS)
    assert hashing is not None
    hashes, usable = hashing(mixed)
    assert usable.tolist() == [False] * 20 + [True] * 20
    assert not hashes[:20].any()
    assert fit(mixed, HashParams(min_images=21)) is None


def test_one_set_gives_one_hash_and_the_artifact_is_checked(tmp_path: Path) -> None:
    thumbnails = np.random.default_rng(1).integers(0, 256, (50, 1024), dtype=np.uint8)
    one, again = fit(thumbnails, PARAMS), fit(thumbnails.copy(), PARAMS)
    assert one is not None
    assert again is not None
    assert one.digest == again.digest
    one.save(tmp_path, {"radius": 3})
    frozen = load(tmp_path / "pca_hash.npz")
    assert np.array_equal(frozen(thumbnails)[0], one(thumbnails)[0])
    assert frozen.mean.shape == (1024,)
    assert frozen.components.shape == (1024, 49)  # 50 images span 49 directions
    assert np.allclose(frozen.rotation @ frozen.rotation.T, np.eye(49), atol=1e-5)
    facts = json.loads((tmp_path / "pca_hash.json").read_text())
    (tmp_path / "pca_hash.json").write_text(json.dumps({**facts, "sha256": "0" * 64}))
    with pytest.raises(VitrailError, match="digest"):
        load(tmp_path / "pca_hash.npz")
    (tmp_path / "pca_hash.npz").write_bytes(b"no archive")
    with pytest.raises(VitrailError, match="not a frozen PCA hash"):
        load(tmp_path / "pca_hash.npz")


def test_a_sample_bounds_the_fit() -> None:
    thumbnails = np.random.default_rng(2).integers(0, 256, (300, 1024), dtype=np.uint8)
    one = fit(thumbnails, HashParams(fit_images=100, min_images=8))
    assert one is not None
    assert one.digest != fit(thumbnails, PARAMS).digest


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(0, 6), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]))
def test_pairs_equal_brute_force(count: int, radius: int, seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 256, (count, width), dtype=np.uint8)
    hashes[count // 2 :] = hashes[: count - count // 2] ^ (
        1 << rng.integers(0, 8, (count - count // 2, width), dtype=np.uint8)
    )
    found = list(pairs_within(hashes, radius))
    expected = {(i, j) for i, j in itertools.combinations(range(count), 2) if distance(hashes[i], hashes[j]) <= radius}
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_multi_index_hashing_misses_nothing() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (6000, 32), dtype=np.uint8)
    for i in range(3000, 6000):  # copies with 0 to 8 flipped bits, spread
        hashes[i] = hashes[i - 3000]
        for bit in rng.choice(256, i % 9, replace=False):
            hashes[i, bit // 8] ^= 1 << (bit % 8)
    for radius in (0, 3, 7):
        expected = {(i - 3000, i) for i in range(3000, 6000) if i % 9 <= radius}
        assert set(pairs_within(hashes, radius)) == expected
