"""``python -m components.dedup train`` and ``whiten``: what is fitted on a curated set, to use on any pool."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.dedup.pool.extract import Decoded, describe_pictures, thumbnails
from components.dedup.pool.images import Pool
from components.descriptors.kinds import LearnedParams, TrainedParams, learn, learning_limit, thumbnail_side
from components.descriptors.sscd import SscdParams, load_sscd
from components.descriptors.whiten import fit_whitening
from components.errors import VitrailError
from components.executor import ExecutorParams
from components.images.samples import RGB
from components.params import fingerprint
from components.progress import track
from components.storage import StorageParams, atomic_file


def train(params: TrainedParams, curated: Path, out: Path, storage: StorageParams, workers: int, chunk: int) -> int:
    """Train on ``curated`` and write ``out``; returns the number of images. Stopped, it carries on when run again.

    Raises:
        VitrailError: see :func:`components.descriptors.train.train_network`; or ``out`` is there already.
    """
    if out.exists():
        raise VitrailError(f"{out}: there already; take another --out, or delete it to train anew")
    pool = Pool.load(curated, storage)
    digest = fingerprint(params, pool.digest)[:16]
    work = out.parent / f".{out.name}.work" / digest
    pictures = learning_pictures(params, pool, work, ExecutorParams(workers=workers), chunk)
    learn(params, pictures, work / out.name)
    (work / out.name).replace(out)
    shutil.rmtree(work.parent)  # and what trainings with other settings left there
    return len(pictures)


@dataclass(frozen=True)
class WhiteningChoice:
    """What a whitening is fitted on and keeps."""

    dim: int | None  # directions kept, the strongest; None: all that the network has
    images: int  # at most, at random
    floor: float  # see :func:`components.descriptors.whiten.fit_whitening`


def whiten(params: SscdParams, curated: Path, out: Path, storage: StorageParams, how: WhiteningChoice) -> str:
    """Fit PCA whitening for a published network on images of ``curated``; returns the SHA-256 of ``out``.

    Args:
        params: of the network; its own ``whitening`` is left aside.
        curated: the background set, which should hold no copies of what is searched later.
        out: file to write, for ``descriptor.whitening``.
        storage: where shards are.
        how: images, directions and floor.

    Raises:
        VitrailError: too few images for the directions; or ``out`` is there already.
    """
    from safetensors.numpy import save

    if out.exists():
        raise VitrailError(f"{out}: there already; take another --out, or delete it to fit anew")
    pool = Pool.load(curated, storage)
    descriptor, store = load_sscd(params.model_copy(update={"whitening": None}), storage), pool.store()
    chosen = np.sort(np.random.default_rng(0).permutation(len(pool))[: how.images])
    pictures = (pool.rgb(int(row), store) for row in track(chosen, "background", len(chosen), unit="images"))
    rows = describe_pictures(descriptor, pictures)[:, 0]
    kept = how.dim or rows.shape[1]
    if not kept <= min(rows.shape[1], len(rows) - 1):
        raise VitrailError(
            f"whiten: {kept} directions of {len(rows)} images and {rows.shape[1]} numbers each; take more images, or "
            "a smaller --dim"
        )
    fitted = fit_whitening(rows, kept, how.floor)
    data = save({"whitening.mean": fitted.mean, "whitening.projection": np.ascontiguousarray(fitted.projection)})
    with atomic_file(out) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def learning_pictures(
    params: LearnedParams, pool: Pool, work: Path, executor: ExecutorParams, chunk: int
) -> Sequence[RGB]:
    """The pictures of ``pool`` that the descriptor learns from, squashed, on disk in ``work`` or decoded when asked."""
    rows, side = learning_rows(params, len(pool)), thumbnail_side(params)
    if isinstance(params, TrainedParams) and params.training.decode == "each_view":
        return Decoded(pool, rows, side)
    return thumbnails(pool, rows, side, work, executor, chunk)


def learning_rows(params: LearnedParams, count: int) -> NDArray[np.int64]:
    """The rows of a pool of ``count`` images that the descriptor learns from: all, or as many as it may, at random."""
    limit = learning_limit(params)
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, limit, replace=False))
