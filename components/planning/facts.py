"""What advice is given on: the images of a manifest, and the rate of a machine."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from components.errors import VitrailError
from components.planning.advice import CPU_FLOPS
from components.planning.records import load_record
from components.training.costs.flops import flops_per_step

LARGEST = 4096  # pixels; larger sides count as this


def images_of(manifest: Path) -> tuple[int, int]:
    """How many images ``manifest`` has, and the median of their shorter sides in pixels.

    Raises:
        VitrailError: no manifest there; run the dedup stage first.
    """
    import pyarrow.parquet as pq

    from components.tables.parts import parts
    from components.tables.schemas import MANIFEST

    of_side = np.zeros(LARGEST + 1, np.int64)  # images by shorter side, so that no list of rows is held
    for part in parts(manifest, MANIFEST):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(1 << 16, columns=["width", "height"]):
                sides = np.minimum(batch["width"].to_numpy(), batch["height"].to_numpy())
                of_side += np.bincount(np.minimum(sides, LARGEST), minlength=len(of_side))
    count = int(of_side.sum())
    if not count:
        raise VitrailError(f"{manifest}: holds no image; select more in the dedup stage")
    return count, int(np.searchsorted(of_side.cumsum(), (count + 1) // 2))


def rate_of_run(run: Path, preset: Path | None) -> tuple[float, str]:
    """Operations a second of a run that was made on this machine, and where that is from."""
    record = load_record(run, preset)
    images, seconds = record.curves.images, record.curves.seconds
    if not images or not seconds:
        raise VitrailError(f"{run}: no time was recorded; name another run")
    each = sum(flops_per_step(record.params, 1).values()) / record.params.run.batch
    return each * images / seconds, f"measured: {images / seconds:.1f} images/s in {run}"


def rate_of_cpu() -> tuple[float, str]:
    """Operations a second of this machine's cores, by a rule."""
    cores = len(os.sched_getaffinity(0))
    return CPU_FLOPS * cores / 2, f"{cores} cores as fast as those of the demo's run; --like RUN takes a run of yours"
