"""python -m components.pretrain run --params params/pretrain/vitt.yaml --curated data/curate --manifest data/dedup/manifest --out data/pretrain/vitt --report reports/pretrain-vitt.json

Also ``check --params ...`` (does this machine fit the preset?) and ``plan --params ... --gpus 96 --gpu h100-80gb``.
``run`` starts a process a GPU (``run.processes``); under torchrun or srun the same command is one of their ranks.
"""  # noqa: E501 - the command to copy

from __future__ import annotations

import argparse
from collections.abc import Sequence

from components.errors import VitrailError
from components.training.command import add_params_arguments, add_run_arguments, context, inputs


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    top = argparse.ArgumentParser(prog="python -m components.pretrain", description="DINO + iBOT + KoLeo pretraining.")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and export")
    add_run_arguments(run, "pretrain")
    check = commands.add_parser("check", help="does this machine fit the preset?")
    plan = commands.add_parser("plan", help="memory, FLOPs and time on a cluster")
    plan.add_argument("--gpus", type=int, default=8)
    plan.add_argument("--gpu", default="h100-80gb")
    plan.add_argument("--utilisation", type=float, default=0.35, help="share of peak FLOP/s that training reaches")
    plan.add_argument("--rate", type=float, help="images a second and GPU, as measured; goes before --utilisation")
    plan.add_argument("--price", type=float, help="of a GPU-hour")
    for command in (run, check, plan):
        add_params_arguments(command)
    return top


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    from components.params import load_params
    from components.training.params import TrainingParams

    params = load_params(args.params, TrainingParams, args.set)
    if args.command == "check":
        from components.pretrain.check import check

        for phase in params.phases():
            print(check(args.params, phase.params) + (f" ({phase.name})" if phase.name else ""))
    elif args.command == "plan":
        from components.pretrain.check import plan

        for name in ("gpus", "utilisation", "rate", "price"):
            value = getattr(args, name)
            if value is not None and value <= 0:
                raise VitrailError(f"--{name} {value}: must be more than 0")
        for phase in params.phases():
            print(f"{phase.name} phase:\n" if phase.name else "", end="")
            cluster = (args.gpus, args.gpu, args.utilisation, args.rate, args.price)
            print(plan(args.params, phase.params, *cluster, first=phase.first))
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
