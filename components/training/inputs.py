"""What a training stage reads; beside nothing that a command line needs, so that a training run imports none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingInputs:
    """What a training stage reads."""

    preset: Path  # the parameter file; of its siblings, those that fit are named where this machine cannot train it
    curated: Path  # folder of index, shards.json and shards
    manifest: Path  # table of the images to train on
    benchmarks: Path | None  # parameter file that names the labelled sets of the probes
