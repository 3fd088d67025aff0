"""Features of images that the feature store keeps, which the benchmark stage also reads and fills."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from components.errors import VitrailError
from components.evaluation.features.store import CLS, PATCHES, FeatureStore, Preprocessing, store_of
from components.images.decode import DecodeError
from components.learning.vit import VisionTransformer
from components.release.use.features import FeatureSpec, ImageFeatures, embed, pixels
from components.release.weights.load import LoadedModel

CHUNK = 16  # batches that are looked up, and kept, at a time
NAMES = {"cls": CLS, "mean": PATCHES}  # what a feature is called in the store
Encoded = tuple[str, bytes | VitrailError]


def embed_kept(
    model: LoadedModel, images: Iterable[Encoded], spec: FeatureSpec, folder: Path
) -> Iterator[ImageFeatures]:
    """As :func:`components.release.use.features.embed`, but an image whose features ``folder`` keeps is only decoded.

    New features are kept. Tokens of single patches are not, nor images of their own sizes.
    """
    side, patch, dim = spec.side(model), model.card.vit.patch_size, model.card.vit.embed_dim
    if side is None or side % patch or not NAMES.keys() >= set(spec.kinds):
        yield from embed(model, images, spec)
        return
    card, supply, grid = model.card, iter(images), (side // patch, side // patch)
    store = _store(folder, model.backbone, Preprocessing(card.mean, card.std, side))
    with ThreadPoolExecutor(spec.threads or 2) as pool:
        while chunk := list(islice(supply, CHUNK * spec.batch)):
            digests = ["" if isinstance(data, VitrailError) else hashlib.sha256(data).hexdigest() for _, data in chunk]
            values, kept = store.read(digests, [NAMES[kind] for kind in spec.kinds])
            sizes = list(pool.map(_size, [data for _, data in chunk], kept.tolist()))
            new = [number for number, size in enumerate(sizes) if size is None]
            made = dict(zip(new, embed(model, [chunk[number] for number in new], spec), strict=True))
            good = [number for number, row in made.items() if not row.error]
            parts = {NAMES[kind]: np.array([getattr(made[n], kind) for n in good], np.float32) for kind in spec.kinds}
            if good:
                store.keep([digests[number] for number in good], parts)
            for number, (key, _) in enumerate(chunk):
                if (size := sizes[number]) is None:
                    yield made[number]
                    continue
                given: dict[str, Any] = {
                    kind: values[number, at * dim : (at + 1) * dim] for at, kind in enumerate(spec.kinds)
                }
                yield ImageFeatures(key, "", *size, grid, **given)


def _size(data: bytes | VitrailError, kept: bool) -> tuple[int, int] | None:
    """Height and width of the image; None where its features have to be made."""
    if not kept or isinstance(data, VitrailError):
        return None
    try:
        height, width = pixels(data).shape[:2]
    except DecodeError:
        return None  # a limit that was not there when its features were kept: told by who makes them
    return height, width


@lru_cache(maxsize=2)
def _store(folder: Path, model: VisionTransformer, seen: Preprocessing) -> FeatureStore:
    """Kept from one part of the images to the next: the digest of large weights takes seconds."""
    return store_of(folder, model, seen)
