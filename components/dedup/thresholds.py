"""The cosines over which two images are copies: given, or measured on this pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.dedup.copy_graph.automatic import Automatic, automatic
from components.dedup.copy_graph.calibrate import Calibration, calibrate, copy_similarities, nearest_differing
from components.dedup.described import Described
from components.dedup.params import DedupParams
from components.dedup.pool.images import Pool
from components.evaluation.sets.benchmarks import Benchmark


class Thresholds(NamedTuple):
    """In force."""

    within: float  # over which two images of the pool are copies (self-dedup)
    relative: float  # over which an image of the pool copies a held-out one
    floor: float  # over which edges are kept
    calibration: Calibration | None = None  # where one of them is `calibrated`
    automatic: Automatic | None = None  # where one of them is `auto`


def thresholds(
    params: DedupParams,
    pool: Pool,
    described: Described,
    sets: Mapping[str, Benchmark],
    rows: Mapping[str, NDArray[np.float16]],
) -> Thresholds:
    """The thresholds that ``params`` give or ask to be calibrated; ``rows`` describe the images of ``sets``."""
    calibration, chosen = _calibrate(params, pool, described, sets, rows), None
    if "auto" in (params.graph.threshold, params.relative.threshold):
        chosen = automatic(described.rows, params.auto, params.neighbours)
        print(f"dedup: {chosen.line()}", flush=True)
    found = []
    for given, name in ((params.graph.threshold, "self"), (params.relative.threshold, "relative")):
        if given == "calibrated":
            assert calibration is not None  # the stage has seen to it
            found.append(float(getattr(calibration, f"threshold_{name}")))
        else:
            found.append(float(getattr(chosen, f"at_{name}") if given == "auto" else given))
    return Thresholds(found[0], found[1], min(*found, params.graph.edges_from), calibration, chosen)


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
