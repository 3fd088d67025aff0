"""The cosines over which two images are copies: given, or measured on this pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.dedup.calibrate import Calibration, calibrate, copy_similarities, nearest_differing
from components.dedup.described import Described
from components.dedup.params import DedupParams
from components.dedup.pool import Pool
from components.evaluation.benchmarks import Benchmark


class Thresholds(NamedTuple):
    """In force."""

    within: float  # over which two images of the pool are copies (self-dedup)
    relative: float  # over which an image of the pool copies a held-out one
    floor: float  # over which edges are kept
    calibration: Calibration | None = None  # None: both were given


def thresholds(
    params: DedupParams,
    pool: Pool,
    described: Described,
    sets: Mapping[str, Benchmark],
    rows: Mapping[str, NDArray[np.float16]],
) -> Thresholds:
    """The thresholds that ``params`` give or ask to be calibrated; ``rows`` describe the images of ``sets``."""
    within, relative = params.graph.threshold, params.relative.threshold
    calibration = _calibrate(params, pool, described, sets, rows)
    if calibration is not None:
        within = calibration.threshold_self if within == "calibrated" else within
        relative = calibration.threshold_relative if relative == "calibrated" else relative
    floor = min(float(within), float(relative), params.graph.edges_from)
    return Thresholds(float(within), float(relative), floor, calibration)


def _calibrate(
    params: DedupParams,
    pool: Pool,
    described: Described,
    sets: Mapping[str, Benchmark],
    rows: Mapping[str, NDArray[np.float16]],
) -> Calibration | None:
    if params.calibration is None:
        return None
    how = params.calibration
    generator = np.random.default_rng(how.seed)
    chosen = np.sort(generator.choice(len(pool), min(how.copies, len(pool)), replace=False))
    store = pool.store()
    pictures = [pool.rgb(int(i), store) for i in chosen]
    copies = copy_similarities(pictures, described.rows.open()[chosen], described.descriptor, generator)
    benchmark = sets[how.benchmark]
    training = np.flatnonzero(~benchmark.test)
    labels = {task: values[training] for task, values in benchmark.labels.items()}
    differing, others = nearest_differing(rows[how.benchmark][training], labels, training, how.apart)
    calibration = calibrate(copies, differing, others, how)
    print(calibration.table(), flush=True)
    return calibration
