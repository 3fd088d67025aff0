"""The part of the command line that pretraining and distillation share, and the paths it names."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """What a training stage reads and writes."""

    params: Path  # the preset, and the folder of its siblings
    curated: Path
    manifest: Path
    out: Path
    report: Path
    scratch: Path
    tracking: Path | None
    benchmarks: Path | None


def add_params_arguments(command: argparse.ArgumentParser) -> None:
    """``--params`` and ``--set``, which every subcommand takes."""
    command.add_argument("--params", type=Path, required=True)
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="lay a value over the file")


def add_run_arguments(run: argparse.ArgumentParser, stage: str) -> None:
    """All other arguments of ``run`` that both stages have."""
    run.add_argument("--curated", type=Path, required=True, help="folder of index, shards.json and shards")
    run.add_argument("--manifest", type=Path, required=True, help="Parquet table of the images to train on")
    run.add_argument("--out", type=Path, required=True, help="folder of the exported model")
    run.add_argument("--report", type=Path, required=True, help="JSON of the run's figures")
    run.add_argument("--scratch", type=Path, default=Path("scratch") / stage, help="training state")
    run.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))
    run.add_argument("--tracking", type=Path, default=Path("params/tracking.yaml"))
    run.add_argument("--no-tracking", action="store_true", help="record nothing in MLflow")
    run.add_argument("--benchmarks", type=Path, default=Path("params/benchmarks.yaml"))


def paths(args: argparse.Namespace) -> Paths:
    """The paths that a parsed ``run`` names."""
    tracking = None if args.no_tracking else args.tracking
    return Paths(
        args.params, args.curated, args.manifest, args.out, args.report, args.scratch, tracking, args.benchmarks
    )
