"""python -m components.distill run --params params/distill/vitxt.yaml --curated data/curate --manifest data/dedup/manifest --teacher data/pretrain/vitt --out data/distill/vitxt --report reports/distill-vitxt.json

``run`` starts a process a GPU (``run.processes``); under torchrun or srun the same command is one of their ranks.
"""  # noqa: E501 - the command to copy

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from components.training.command import add_params_arguments, add_run_arguments, context, inputs


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    top = argparse.ArgumentParser(prog="python -m components.distill", description="Distillation of a frozen teacher.")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train the student and export it")
    add_params_arguments(run)
    add_run_arguments(run, "distill")
    run.add_argument("--teacher", type=Path, required=True, help="folder of the exported teacher")
    return top


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    from components.distill.method import DistillParams
    from components.params import load_params
    from components.training.launch import start_ranks

    params = load_params(args.params, DistillParams, args.set)
    start_ranks("components.distill", argv, params)
    from components.distill import stage

    given = stage.DistillInputs(**vars(inputs(args)), teacher=args.teacher)
    stage.run(params, given, args.out, context(args))
    return 0
