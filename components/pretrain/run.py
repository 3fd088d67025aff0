"""python -m components.pretrain run --params params/pretrain/vitt.yaml --curated data/curate --manifest data/dedup/manifest --out data/pretrain/vitt --report reports/pretrain-vitt.json

Also ``check --params ...`` (does this machine fit the preset?). What a cluster needs: ``python -m components.planning``.
``run`` starts a process a GPU (``run.processes``); under torchrun or srun the same command is one of their ranks.
``--stage pretrain@vitt`` gives params, out and report of that stage in params/pipeline.yaml.
"""  # noqa: E501 - the command to copy

from __future__ import annotations

import os
import sys
from typing import Annotated

from cyclopts import Parameter

from components.command_line import Options, ParamsOptions, application, commands_of, words
from components.pipeline import with_stage
from components.training.command import TrainingRunOptions

app = application("pretrain", "Train a vision transformer with DINO, iBOT and KoLeo.", "components.pretrain")
main = commands_of(app, with_stage)


@app.command
def run(*, options: Options[TrainingRunOptions]) -> None:
    """Train and export.

    `--stage pretrain@vitt` gives --params, --out and --report of that stage in params/pipeline.yaml.
    """
    from components.params import load_params
    from components.training.costs.capability import require, this_machine
    from components.training.launch import launched, processes, start_ranks
    from components.training.params import TrainingParams
    from components.training.ranks.distributed import launched_rank

    params = load_params(options.params, TrainingParams, options.set)
    count = None if launched() else processes(params, this_machine())
    for phase in params.phases():  # before the imports and the data: seconds, not minutes
        require(options.params, phase.params, count or launched_rank().size, here=count)
    start_ranks("components.pretrain", ["run", *words(options)], params)
    from components.pretrain import stage

    stage.run(params, options.inputs(), options.out, options.context("pretrain"))


@app.command
def check(*, options: Options[ParamsOptions]) -> None:
    """Say whether this machine fits the preset."""
    from components.params import load_params
    from components.pretrain.check import check as fits
    from components.training.params import TrainingParams

    for phase in load_params(options.params, TrainingParams, options.set).phases():
        print(fits(options.params, phase.params) + (f" ({phase.name})" if phase.name else ""))


@app.command(help_flags=())
def plan(*given: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """The same as: python -m components.planning pretrain."""
    sys.stdout.flush()  # a room above this one, which is not imported from here
    os.execv(sys.executable, [sys.executable, "-m", "components.planning", "pretrain", *given])
