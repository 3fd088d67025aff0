"""python -m components.pretrain run --params params/pretrain/vitt.yaml --curated data/curate --manifest data/dedup/manifest --out data/pretrain/vitt --report reports/pretrain-vitt.json

Also ``check --params ...`` (does this machine fit the preset?). What a cluster needs: ``python -m components.planning``.
``run`` starts a process a GPU (``run.processes``); under torchrun or srun the same command is one of their ranks.
``--stage pretrain@vitt`` stands for params, out, report of that stage in params/pipeline.yaml.
"""  # noqa: E501 - the command to copy

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from components.command_name import prog
from components.pipeline import with_stage
from components.training.command import add_params_arguments, add_run_arguments, context, inputs


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    top = argparse.ArgumentParser(prog=prog("components.pretrain"), description="DINO + iBOT + KoLeo pretraining.")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and export")
    add_run_arguments(run, "pretrain")
    check = commands.add_parser("check", help="does this machine fit the preset?")
    commands.add_parser("plan", help="the same as: python -m components.planning pretrain", add_help=False)
    for command in (run, check):
        add_params_arguments(command)
    return top


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    if argv[:1] == ["plan"]:  # a room above this one, which is not imported from here
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "components.planning", "pretrain", *argv[1:]])
    argv = with_stage(argv)
    args = parser().parse_args(argv)
    from components.params import load_params
    from components.training.params import TrainingParams

    params = load_params(args.params, TrainingParams, args.set)
    if args.command == "check":
        from components.pretrain.check import check

        for phase in params.phases():
            print(check(args.params, phase.params) + (f" ({phase.name})" if phase.name else ""))
    else:
        from components.training.capability import require, this_machine
        from components.training.distributed import place
        from components.training.launch import launched, processes, start_ranks

        count = None if launched() else processes(params, this_machine())
        for phase in params.phases():  # before the imports and the data: seconds, not minutes
            require(args.params, phase.params, count or place().size, here=count)
        start_ranks("components.pretrain", argv, params)
        from components.pretrain import stage

        stage.run(params, inputs(args), args.out, context(args))
    return 0
