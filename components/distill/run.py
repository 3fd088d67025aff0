"""python -m components.distill run --params params/distill/vitxt.yaml --curated data/curate --manifest data/dedup/manifest --teacher data/pretrain/vitt --out data/distill/vitxt --report reports/distill-vitxt.json

``run`` starts a process a GPU (``run.processes``); under torchrun or srun the same command is one of their ranks.
``--stage distill@vitxt`` gives params, out, report and teacher of that stage in params/pipeline.yaml.
"""  # noqa: E501 - the command to copy

from __future__ import annotations

from components.command_line import Options, application, as_options, commands_of, words
from components.pipeline import with_stage
from components.training.command import TrainingRunOptions

app = application("distill", "Train a smaller student from a frozen teacher.", "components.distill")
main = commands_of(app, with_stage)


@as_options
class RunOptions(TrainingRunOptions):
    """Options of ``run``."""

    teacher: str
    """The teacher with its heads: an export, or any checkpoint."""


@app.command
def run(*, options: Options[RunOptions]) -> None:
    """Train the student and export it.

    `--stage distill@vitxt` gives --params, --out, --report and --teacher of that stage in params/pipeline.yaml.
    """
    from components.distill.method import DistillParams
    from components.params import load_params
    from components.training.launch import start_ranks

    params = load_params(options.params, DistillParams, options.set)
    start_ranks("components.distill", ["run", *words(options)], params)
    from components.distill import stage

    given = stage.DistillInputs(**vars(options.inputs()), teacher=options.teacher)
    stage.run(params, given, options.out, options.context("distill"))
