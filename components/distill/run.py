"""python -m components.distill run --params params/distill/vitxt.yaml --curated data/curate --manifest data/dedup/manifest --teacher data/pretrain/vitt --out data/distill/vitxt --report reports/distill-vitxt.json

``run`` starts a process a GPU (``run.processes``); under torchrun or srun the same command is one of their ranks.
``--stage distill@vitxt`` stands for params, out, report and teacher of that stage in params/pipeline.yaml.
"""  # noqa: E501 - the command to copy

from __future__ import annotations

import argparse
from collections.abc import Sequence

from components.command_name import prog
from components.pipeline import with_stage
from components.training.command import add_params_arguments, add_run_arguments, context, inputs


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    top = argparse.ArgumentParser(prog=prog("components.distill"), description="Distillation of a frozen teacher.")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train the student and export it")
    add_params_arguments(run)
    add_run_arguments(run, "distill")
    run.add_argument("--teacher", required=True, help="the teacher with its heads: an export, or any checkpoint")
    return top


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    argv = with_stage(argv)
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
