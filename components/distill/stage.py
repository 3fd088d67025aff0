"""The distill stage: from a frozen teacher and the manifest to the exported student."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.context import StageContext
from components.distill.method import Distillation, DistillParams, check_teacher, teacher_of
from components.evaluation.probing.online import Subject, observe
from components.evaluation.probing.seeds import seed_images
from components.release.weights.fetch import pinned
from components.release.weights.load import LoadedModel, load_model, weights_digests
from components.storage import atomic_file
from components.training.costs.capability import count_parameters, require
from components.training.inputs import TrainingInputs
from components.training.loop import Stretch, train
from components.training.ranks.distributed import World
from components.training.session import (
    Origin,
    data_digest,
    export_average,
    fit_batch,
    holding,
    keep_global_batch,
    open_checkpoints,
    open_loader,
    start,
    summary,
)


@dataclass(frozen=True)
class DistillInputs(TrainingInputs):
    """What the distill stage reads."""

    teacher: str | Path  # a model with heads, as :func:`components.release.weights.load.load_model` takes it


def run(params: DistillParams, inputs: DistillInputs, outputs: Path, context: StageContext) -> dict[str, Any]:
    """Train a student of the exported teacher; export it to ``outputs``, write and return the report.

    Raises:
        VitrailError: the machine cannot train this preset, an input is missing, damaged or does not fit, or another run
            is at work on its state or output.
        components.training.loop.Stopped: a signal came; the training state is kept.
    """
    inputs = replace(inputs, teacher=pinned(inputs.teacher))
    teacher = load_model(inputs.teacher)
    check_teacher(params, teacher.card, inputs.teacher)
    world = start(params)
    with holding(world, context.scratch / outputs.name, outputs):
        return _run(params, inputs, outputs, context, teacher, world)


def _run(
    params: DistillParams,
    inputs: DistillInputs,
    outputs: Path,
    context: StageContext,
    loaded: LoadedModel,
    world: World,
) -> dict[str, Any]:
    storage, scratch, card = context.storage, context.scratch, loaded.card
    digest = data_digest(inputs.curated, inputs.manifest)
    params = fit_batch(params, inputs.manifest, world)
    teacher = teacher_of(loaded)
    require(inputs.preset, params, world.size, sum(p.numel() for p in teacher.parameters()))
    label, preset = f"distill {outputs.name}", outputs.name
    digests = {f"teacher {name}": found for name, found in weights_digests(inputs.teacher).items()}
    identity = params.identity(digest, **digests)
    checkpoints = open_checkpoints(scratch / preset, params, identity, world, context.checkpoint_store(preset))
    [params] = keep_global_batch([params], [checkpoints], world)
    loader = open_loader(params, inputs, storage, world, scratch / "quarantine")
    learner = Distillation(params, teacher, world)
    seeds = seed_images(inputs.curated, inputs.manifest, storage, params.probe.pictures)
    subject = Subject("distill", preset, (str(inputs.manifest), digest), seeds)
    tracking, benchmarks = context.tracking, inputs.benchmarks
    with observe(subject, params, learner.engine, tracking, benchmarks, checkpoints) as observer:
        curves = train(learner, loader, params, checkpoints, observer, Stretch(label, scratch))
        model_id = observer.register(params.run.iterations, wait=10.0)
        origin = Origin("distill", identity.fingerprint, digest, params.run.iterations, card.preset, model_id)
        export_average(outputs, learner.engine, params, origin, curves, storage)
        report = {
            "preset": preset,
            "teacher": card.preset,
            "parameters": count_parameters(params),
            **summary(params, world, curves),
        }
        if world.main:
            if context.report is not None:
                with atomic_file(context.report, "w") as file:
                    file.write(json.dumps(report, indent=1) + "\n")
            observer.finish(outputs, report)
    if not params.run.keep_state:
        checkpoints.remove()
    return report
