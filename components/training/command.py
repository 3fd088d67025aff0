"""The part of the command line that pretraining and distillation share, and what it names."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from components.context import StageContext
from components.params import load_params
from components.storage import StorageParams, is_remote
from components.tracking import TrackingParams


@dataclass(frozen=True)
class TrainingInputs:
    """What a training stage reads."""

    preset: Path  # the parameter file; of its siblings, those that fit are named where this machine cannot train it
    curated: Path  # folder of index, shards.json and shards
    manifest: Path  # table of the images to train on
    benchmarks: Path | None  # parameter file that names the labelled sets of the probes


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
    run.add_argument(
        "--scratch",
        default=str(Path("scratch") / stage),
        metavar="FOLDER",
        help=f"training state; s3://bucket/prefix: in scratch/{stage}, with copies there to resume from elsewhere",
    )
    run.set_defaults(room=stage)
    run.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))
    run.add_argument("--tracking", type=Path, default=Path("params/tracking.yaml"))
    run.add_argument("--no-tracking", action="store_true", help="record nothing in MLflow")
    run.add_argument("--benchmarks", type=Path, default=Path("params/benchmarks.yaml"))


def inputs(args: argparse.Namespace) -> TrainingInputs:
    """What a parsed ``run`` reads."""
    return TrainingInputs(args.params, args.curated, args.manifest, args.benchmarks)


def context(args: argparse.Namespace) -> StageContext:
    """What a parsed ``run`` shares with every stage."""
    tracking = None if args.no_tracking else load_params(args.tracking, TrackingParams)
    storage = load_params(args.storage, StorageParams)
    scratch, copies = args.scratch, None
    if is_remote(scratch):
        scratch, copies = str(Path("scratch") / args.room), scratch
    elif storage.checkpoints is not None:
        copies = f"{storage.checkpoints.rstrip('/')}/{args.room}"
    return StageContext(storage, tracking, args.report, Path(scratch), copies)
