"""python -m components.distill run --params params/distill/vitxt.yaml --curated data/curate --manifest data/dedup/manifest.parquet --teacher data/pretrain/vitt --out data/distill/vitxt --report reports/distill-vitxt.json

Under torchrun or Slurm the same command trains on all ranks.
"""  # noqa: E501 - the command to copy

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    top = argparse.ArgumentParser(prog="python -m components.distill", description="Distillation of a frozen teacher.")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train the student and export it")
    run.add_argument("--params", type=Path, required=True)
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="lay a value over the file")
    run.add_argument("--curated", type=Path, required=True, help="folder of index, shards.json and shards")
    run.add_argument("--manifest", type=Path, required=True, help="Parquet table of the images to train on")
    run.add_argument("--teacher", type=Path, required=True, help="folder of the exported teacher")
    run.add_argument("--out", type=Path, required=True, help="folder of the exported student")
    run.add_argument("--report", type=Path, required=True, help="JSON of the run's figures")
    run.add_argument("--scratch", type=Path, default=Path("scratch/distill"), help="training state")
    run.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))
    run.add_argument("--tracking", type=Path, default=Path("params/tracking.yaml"))
    run.add_argument("--no-tracking", action="store_true", help="record nothing in MLflow")
    run.add_argument("--benchmarks", type=Path, default=Path("params/benchmarks.yaml"))
    return top


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    from components.distill.method import DistillParams
    from components.distill.stage import Paths, distill
    from components.params import load_params
    from components.storage import StorageParams

    params = load_params(args.params, DistillParams, args.set)
    storage = load_params(args.storage, StorageParams)
    tracking = None if args.no_tracking else args.tracking
    paths = Paths(
        args.params,
        args.curated,
        args.manifest,
        args.teacher,
        args.out,
        args.report,
        args.scratch,
        tracking,
        args.benchmarks,
    )
    distill(params, paths, storage)
    return 0
