"""Which image of a component is kept: a score for every image, the largest score wins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.dedup import quality
from components.dedup.extract import Pool, decode_picture
from components.dedup.graph import Keep
from components.dedup.quality import ranks
from components.descriptors.views import RGB, reduce
from components.executor import ExecutorParams, map_shards
from components.images.shards import Shards
from components.progress import track
from components.storage import StorageParams

SIDE = 256  # pixels of the short side that sharpness is measured at, so that size as such does not count


def scores(
    keep: Keep, pool: Pool, labels: NDArray[np.integer[Any]], executor: ExecutorParams, chunk: int
) -> NDArray[np.float64]:
    """A score [N] for every row of ``pool`` by ``keep``; ``labels`` [N] are the components, for only they compete.

    * quality: what size, format and pixels say of edits and losses (:mod:`components.dedup.quality`);
    * largest: the area in pixels;
    * oldest: the place in the order of the crawl, by source file and offset, for WARC file names begin with their date;
    * sharpest: the variance of the Laplacian of the gray picture at :data:`SIDE` pixels.

    For quality and sharpest, images with a duplicate are read from the shards.
    """
    rows = pool.rows
    if keep == "oldest":
        order = np.lexsort((rows["source_offset"].to_numpy(), np.array(rows["source"].to_pylist())))
        place = np.empty(len(order))
        place[order] = np.arange(len(order))
        return -place
    if keep == "largest":
        return np.asarray(rows["width"].to_numpy().astype(np.float64) * rows["height"].to_numpy())
    competing = np.flatnonzero(np.bincount(labels, minlength=len(labels))[labels] > 1)
    found = np.zeros(len(labels))
    jobs = [*_jobs(pool, competing, chunk)]
    measure = partial(_measured_chunk, keep, pool.curated, pool.storage)
    done = track(map_shards(measure, jobs, executor), f"{keep} of duplicates", len(jobs), unit="chunks")
    measured = np.concatenate([*done]) if jobs else np.empty((0, 1))
    if keep == "quality":
        _, groups = np.unique(labels[competing], return_inverse=True)
        found[competing] = ranks(measured, groups) if len(competing) else 0
    else:
        found[competing] = measured[:, 0]
    return found


def sharpness(rgb: RGB) -> float:
    """The variance of the Laplacian of ``rgb`` [H, W, 3] in gray, reduced to :data:`SIDE`."""
    import cv2

    gray = cv2.cvtColor(reduce(rgb, SIDE), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(gray, cv2.CV_32F).var())


@dataclass(frozen=True)
class _Job:
    rows: NDArray[np.int64]
    places: list[dict[str, Any]]


def _jobs(pool: Pool, rows: NDArray[np.int64], chunk: int) -> Iterator[_Job]:
    places = pool.rows.select(["key", "shard", "offset", "length"])
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        yield _Job(part, places.take(part).to_pylist())


def _measured_chunk(keep: Keep, curated: Path, storage: StorageParams, job: _Job) -> NDArray[np.float64]:
    """What ``keep`` asks to know of the job's images [n, fields]."""
    store = Shards.load(curated).store(curated, storage)
    found = []
    for place in job.places:
        data = store.read(place["shard"], place["offset"], place["length"])
        rgb = decode_picture(data, store, place)
        found.append([*quality.measure(data, rgb)] if keep == "quality" else [sharpness(rgb)])
    return np.asarray(found, np.float64)
