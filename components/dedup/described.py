"""Descriptors of everything that dedup compares: the pool's, in a file, and those of benchmarks' images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.dedup.decisions.reference import HeldOutImages
from components.dedup.params import DedupParams
from components.dedup.pool.extract import Describing, check_described, describe, describe_pictures
from components.dedup.pool.fit import learning_pictures
from components.dedup.pool.images import Pool
from components.dedup.pool.scratch import described_digest, scratch_folder
from components.descriptors.kinds import (
    Descriptor,
    DescriptorParams,
    ReadyParams,
    TrainedParams,
    adopt,
    learn,
    load_descriptor,
)
from components.descriptors.rows import DescriptorRows
from components.descriptors.views import WHOLE, Views
from components.evaluation.sets.benchmarks import Benchmark
from components.evaluation.sets.labelled_set import Divisible, Images
from components.executor import map_shards
from components.progress import track
from components.storage import StorageParams


@dataclass(frozen=True)
class Described:
    """A descriptor and what it says of the pool."""

    folder: Path  # its weights and rows, named by all that they depend on
    descriptor: Descriptor
    how: Describing  # by which a worker loads the descriptor again
    storage: StorageParams
    rows: DescriptorRows  # [N, R, dim]


def describe_pool(
    given: DescriptorParams, params: DedupParams, pool: Pool, parent: Path, kind: str, views: Views = WHOLE
) -> Described:
    """The descriptor ``given``, learned from the pool where its kind asks for that, and the pool's rows.

    Both are in a folder of that ``kind`` below ``parent``.
    """
    folder = scratch_folder(parent, kind, described_digest(given, views, params.chunk, pool.digest, pool.storage))
    weights = folder / "weights.safetensors"
    if not isinstance(given, ReadyParams) and not weights.exists():
        if isinstance(given, TrainedParams) and given.weights:
            adopt(given, weights)
        else:
            learn(given, learning_pictures(given, pool, folder, params.executor, params.chunk), weights)
    how = Describing(given, weights, views)
    rows = describe(pool, how, folder, params.executor, params.chunk)
    return Described(folder, load_descriptor(given, weights, pool.storage), how, pool.storage, rows)


def describe_set(
    described: Described,
    one: Benchmark,
    params: DedupParams,
    views: Views = WHOLE,
    which: NDArray[np.int64] | None = None,
) -> NDArray[np.float16]:
    """Descriptors [n, R, dim] of a benchmark's images, or of its rows ``which``, in increasing order.

    The images are spread over ``params.executor``, unless a plugin's cannot travel to other processes.
    """
    how = replace(described.how, views=views)
    chosen = np.arange(len(one.keys)) if which is None else which
    if isinstance(one.images, Divisible):
        jobs = [
            _SetPart(how, described.storage, one.images.part(start, start + params.chunk), inside - start)
            for start in range(0, len(one.keys), params.chunk)
            if len(inside := chosen[(chosen >= start) & (chosen < start + params.chunk)])
        ]
        done = map_shards(_describe_part, jobs, params.executor)
        parts = [*track(done, f"descriptors of {one.name}", len(jobs), unit="chunks")]
    else:
        parts = [_describe_part(_SetPart(how, described.storage, one.images, chosen))]
    rows: NDArray[np.float16] = np.concatenate(parts)
    check_described(rows, lambda i: f"benchmark image {one.keys[chosen[i]]}")
    return rows


@dataclass(frozen=True)
class _SetPart:
    how: Describing
    storage: StorageParams
    images: Images
    rows: NDArray[np.int64]  # of ``images``


def _describe_part(part: _SetPart) -> NDArray[np.float16]:
    descriptor = load_descriptor(part.how.params, part.how.weights, part.storage)
    return describe_pictures(descriptor, (part.images.rgb(int(row)) for row in part.rows), part.how.views)


def held_out_images(
    params: DedupParams, sets: Mapping[str, Benchmark], described: Mapping[str, NDArray[np.float16]], dim: int
) -> HeldOutImages:
    """Those of ``sets`` that ``relative.against`` asks for, from their descriptors."""
    asked = {name: one.kept_out(params.relative.against) for name, one in sets.items()}
    rows = [described[name][asked[name]] for name in sets]
    keys = [one.keys[i] for name, one in sets.items() for i in np.flatnonzero(asked[name])]
    digests = [one.digests[i] for name, one in sets.items() for i in np.flatnonzero(asked[name])]
    return HeldOutImages(np.concatenate(rows) if rows else np.empty((0, 1, dim), np.float16), keys, digests)
