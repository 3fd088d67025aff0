"""Pictures of a few fixed training images: what augmentation and masks make of them, and the PCA of their patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from components.images.dataset import ManifestDataset
from components.images.decode import RGB, DecodeError, DecodeLimits, decode
from components.learning.augment import MultiCrop
from components.learning.masks import sample_masks
from components.storage import StorageParams
from components.training.params import TrainingParams

HIDDEN = np.array([170, 40, 90], np.uint8)  # colour of masked patches: one that gray images do not have


def seed_images(curated: Path, manifest: Path, storage: StorageParams, count: int) -> list[RGB]:
    """``count`` images spread evenly over the manifest, the same for every run on it; unreadable ones give way.

    Raises:
        VitrailError: the manifest or a shard is missing.
    """
    if count < 1:
        return []
    dataset = ManifestDataset(curated, manifest, storage)
    first = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
    found: list[RGB] = []
    for row in list(dict.fromkeys([*first, *range(len(dataset))])):
        (address,) = dataset.addresses([row])
        try:
            image = decode(dataset.read(address), DecodeLimits())
        except DecodeError:
            continue  # the loader reports it
        found.append(np.stack([image] * 3, axis=-1) if image.ndim == 2 else image)
        if len(found) == count:
            break
    dataset.close()
    return found


def crops_picture(images: list[RGB], params: TrainingParams, generator: np.random.Generator) -> RGB:
    """A row an image: both global crops, each followed by itself under its mask, then the local crops; [H, W, 3]."""
    augment, patch = params.augment, params.vit.patch_size
    crop = MultiCrop(augment)
    samples = [crop(image, generator) for image in images]
    masks = sample_masks(2 * len(images), params.grid(), params.masks, generator).numpy()
    rows = []
    for number, sample in enumerate(samples):
        cells = []
        for view in range(2):
            image = interleaved(sample.globals[view])
            mask = masks[view * len(images) + number].reshape(params.grid())
            hidden = np.kron(mask, np.ones((patch, patch), bool))
            cells += [image, np.where(hidden[..., None], HIDDEN, image)]
        cells += [interleaved(view) for view in sample.locals]
        rows.append(np.concatenate([padded(cell, augment.global_size) for cell in cells], axis=1))
    return np.concatenate(rows, axis=0)


def interleaved(view: RGB) -> RGB:
    """[C, H, W], C 1 or 3, as [H, W, 3]."""
    return np.ascontiguousarray(np.broadcast_to(view.transpose(1, 2, 0), (*view.shape[1:], 3)))


def padded(image: RGB, size: int) -> RGB:
    """``image`` in the top left corner of a black square of ``size``."""
    out = np.zeros((size, size, 3), np.uint8)
    out[: image.shape[0], : image.shape[1]] = image
    return out
