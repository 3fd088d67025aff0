"""``python -m components.dedup train``: a descriptor of SSCD's kind from a curated set, to use on any pool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.dedup.descriptors import LearnedParams, TrainedParams, learn, learning_limit, thumbnail_side
from components.dedup.extract import Decoded, Pool, thumbnails
from components.dedup.views import RGB
from components.errors import VitrailError
from components.executor import ExecutorParams
from components.params import fingerprint
from components.storage import StorageParams


def train(params: TrainedParams, curated: Path, out: Path, storage: StorageParams, workers: int, chunk: int) -> int:
    """Train on ``curated`` and write ``out``; returns the number of images. Stopped, it carries on when run again.

    Raises:
        VitrailError: see :func:`components.dedup.train.train_network`; or ``out`` is there already.
    """
    if out.exists():
        raise VitrailError(f"{out}: there already; take another --out, or delete it to train anew")
    pool = Pool.load(curated, storage)
    digest = fingerprint(params, pool.rows["stored_sha256"].to_pylist())[:16]
    work = out.parent / f".{out.name}.work" / digest
    pictures = learning_pictures(params, pool, work, ExecutorParams(workers=workers), chunk)
    learn(params, pictures, work / out.name)
    (work / out.name).replace(out)
    for left in work.iterdir():
        left.unlink()
    work.rmdir()
    return len(pictures)


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
