"""Near-duplicate hashes: sign bits of a rotated PCA of small, contrast-normalised luma thumbnails.

The paper says "PCA hash" and no more (DINOv2, section 3); this is our definition. A thumbnail is 32 x 32 luma, each
pixel the mean of an area. It is mean-centred and scaled to unit length, so brightness and contrast do not matter;
projected on the leading principal components of the set; mixed by a fixed random rotation, so that each bit carries a
like share of the variance (where iterative quantisation begins); and each coordinate gives its sign. Hashes compare by
Hamming distance. Thumbnails without contrast have no direction, and no hash.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from components.errors import VitrailError
from components.images.decode import RGB
from components.input_paths import InputFile
from components.neighbours import hamming_pairs
from components.params import Seed, Strict
from components.storage import atomic_file

SIDE = 32
VERSION = 2  # 2: components and rotation apart

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class HashParams(Strict):
    """The hash and the radius within which two images count as one."""

    bits: int = Field(256, ge=8, le=SIDE * SIDE, multiple_of=8)
    radius: int = Field(3, ge=0, le=1_000_000)  # bits that may differ
    min_contrast: float = Field(2.0, ge=0, le=255.0)  # standard deviation of the thumbnail, in gray levels
    min_images: int = Field(32, ge=2, le=10**12)  # fewer: no fit, and only exact duplicates are found
    fit_images: int = Field(100_000, ge=2, le=10**12)  # sample to fit on
    seed: Seed = 0
    artifact: InputFile | None = None  # a frozen hash to use instead of fitting one, as pca_hash.npz of an earlier run


@dataclass(frozen=True)
class PcaHash:
    """A fitted hash: ``bits = (normalised thumbnail - mean) @ components @ rotation > 0``."""

    mean: Floats  # [1024]
    components: Floats  # [1024, rank]: the leading principal components, rank <= bits
    rotation: Floats  # [rank, bits], rows orthonormal
    min_contrast: float

    @functools.cached_property
    def projection(self) -> Floats:
        """float32 ``[1024, bits]``: components and rotation in one."""
        return np.asarray(self.components @ self.rotation, np.float32)

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays and the version: equal hashes of equal images exactly when equal."""
        shapes = self.components.shape, self.rotation.shape
        content = hashlib.sha256(f"{VERSION} {self.min_contrast!r} {shapes}".encode())
        for array in (self.mean, self.components, self.rotation):
            content.update(array.astype("<f4").tobytes())
        return content.hexdigest()

    def __call__(self, thumbnails: Bytes) -> tuple[Bytes, npt.NDArray[np.bool_]]:
        """Packed hashes ``[N, bits / 8]`` of ``thumbnails`` ``[N, 1024]``, and which of them have one ``[N]``."""
        packed = np.zeros((len(thumbnails), self.rotation.shape[1] // 8), np.uint8)
        usable = np.zeros(len(thumbnails), bool)
        for start in range(0, len(thumbnails), 8192):
            rows, good = _normalised(thumbnails[start : start + 8192], self.min_contrast)
            packed[start : start + 8192] = np.packbits((rows - self.mean) @ self.projection > 0, axis=1)
            usable[start : start + 8192] = good
        packed[~usable] = 0
        return packed, usable

    def save(self, folder: Path, facts: dict[str, object]) -> None:
        """Write ``pca_hash.npz`` and ``pca_hash.json`` (its digest and ``facts``) into ``folder``."""
        with atomic_file(folder / "pca_hash.npz") as file:
            np.savez(
                file,
                mean=self.mean,
                components=self.components,
                rotation=self.rotation,
                min_contrast=np.float64(self.min_contrast),
            )
        with atomic_file(folder / "pca_hash.json", "w") as file:
            json.dump({"version": VERSION, "sha256": self.digest, **facts}, file, indent=1)


def thumbnail(rgb: RGB) -> Bytes:
    """uint8 ``[1024]``: ``rgb`` ``[H, W, 3]`` as 32 x 32 luma (BT.601), each pixel the mean of the area it covers."""
    import cv2

    luma = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(luma, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8).reshape(-1)


def sample(count: int, params: HashParams) -> npt.NDArray[np.int64]:
    """int64 ``[min(count, fit_images)]``: which of ``count`` images a hash is fitted on, ascending."""
    if count <= params.fit_images:
        return np.arange(count)
    return np.sort(np.random.default_rng(params.seed).choice(count, params.fit_images, replace=False))


def fit(thumbnails: Bytes, params: HashParams) -> PcaHash | None:
    """A hash fitted on ``thumbnails`` ``[N, 1024]``; None when too few of them have contrast.

    With fewer images than bits the components span fewer directions than bits, and the rotation becomes a random
    projection of them.
    """
    if len(thumbnails) > params.fit_images:
        thumbnails = thumbnails[sample(len(thumbnails), params)]
    total = np.zeros(SIDE * SIDE)
    moments = np.zeros((SIDE * SIDE, SIDE * SIDE))
    count = 0
    for start in range(0, len(thumbnails), 8192):
        rows, good = _normalised(thumbnails[start : start + 8192], params.min_contrast)
        kept = rows[good].astype(np.float64)
        total += kept.sum(0)
        moments += kept.T @ kept
        count += len(kept)
    if count < params.min_images:
        return None
    mean = total / count
    values, vectors = np.linalg.eigh(moments / count - np.outer(mean, mean))
    rank = int(min(params.bits, (values > values[-1] * 1e-9).sum(), count - 1))
    components = vectors[:, ::-1][:, :rank]
    # An eigenvector's sign is arbitrary: fix it, so that one set gives one hash.
    components = components * np.sign(components[np.abs(components).argmax(0), np.arange(rank)])
    rotation = np.linalg.qr(np.random.default_rng(params.seed).standard_normal((params.bits, rank)))[0].T
    single = np.float32
    return PcaHash(mean.astype(single), components.astype(single), rotation.astype(single), params.min_contrast)


def load(path: Path) -> PcaHash:
    """The frozen hash at ``path``, checked against the digest beside it.

    Raises:
        VitrailError: a file is missing, or is not what its digest says.
    """
    facts = path.with_suffix(".json")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            contrast = float(arrays["min_contrast"])
            frozen = PcaHash(arrays["mean"], arrays["components"], arrays["rotation"], contrast)
        digest = json.loads(facts.read_text())["sha256"]
    except (OSError, ValueError, KeyError) as fault:
        raise VitrailError(
            f"{path}: not a frozen PCA hash with its .json beside it ({fault}); check pca_hash.artifact"
        ) from None
    if frozen.digest != digest:
        raise VitrailError(f"{path}: its content has not the digest that {facts.name} gives; fetch it again")
    return frozen


def buckets(hashes: Bytes) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """The distinct ones of ``hashes`` ``[N, B]``, and the number ``[N]`` among them of each: exact duplicates first."""
    distinct, bucket = np.unique(hashes, axis=0, return_inverse=True)
    return distinct, bucket.reshape(-1).astype(np.int64)


def pairs_within(hashes: Bytes, radius: int) -> Iterator[tuple[int, int]]:
    """Index pairs (i < j) of ``hashes`` ``[N, B]`` at Hamming distance at most ``radius``, each once."""
    for ones, others, _ in hamming_pairs(hashes, radius):
        yield from zip(ones.tolist(), others.tolist(), strict=True)


def _normalised(thumbnails: Bytes, min_contrast: float) -> tuple[Floats, npt.NDArray[np.bool_]]:
    rows = thumbnails.astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    deviation = rows.std(1)
    usable = (deviation >= min_contrast) & (deviation > 0)
    rows /= np.where(usable, deviation * SIDE, 1)[:, None]  # |row| = std x sqrt(1024)
    return rows, usable
