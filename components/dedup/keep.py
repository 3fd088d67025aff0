"""Which image of a component is kept: a score for every image, the largest score wins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.dedup.extract import Pool, read_picture
from components.dedup.graph import Keep
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

    largest: the area in pixels. oldest: the place in the order of the crawl, by source file and offset, for WARC file
    names begin with their date. sharpest: the variance of the Laplacian of the gray picture at :data:`SIDE` pixels,
    read from the shards for images with a duplicate only.
    """
    rows = pool.rows
    if keep == "oldest":
        order = np.lexsort((rows["source_offset"].to_numpy(), np.array(rows["source"].to_pylist())))
        place = np.empty(len(order))
        place[order] = np.arange(len(order))
        return -place
    if keep == "sharpest":
        competing = np.flatnonzero(np.bincount(labels, minlength=len(labels))[labels] > 1)
        found = np.zeros(len(labels))
        jobs = [*_jobs(pool, competing, chunk)]
        measure = partial(_sharpness_chunk, pool.curated, pool.storage)
        done = track(map_shards(measure, jobs, executor), "sharpness of duplicates", len(jobs), unit="chunks")
        for job, values in zip(jobs, done, strict=True):
            found[job.rows] = values
        return found
    return np.asarray(rows["width"].to_numpy().astype(np.float64) * rows["height"].to_numpy())


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


def _sharpness_chunk(curated: Path, storage: StorageParams, job: _Job) -> list[float]:
    store = Shards.load(curated).store(curated, storage)
    return [sharpness(read_picture(store, place)) for place in job.places]
