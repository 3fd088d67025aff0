"""The pretrain stage: from the manifest of curated images to the exported teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from components.context import StageContext
from components.errors import VitrailError
from components.evaluation.probing.online import Subject, observe
from components.evaluation.probing.seeds import seed_images
from components.images.loader import Loader
from components.pretrain.method import Pretraining
from components.pretrain.start import pinned_start, started_from
from components.storage import atomic_file
from components.training.checkpoints.checkpoint import Checkpoints
from components.training.checkpoints.resolution import carry_over, earlier_lengths
from components.training.costs.capability import count_parameters, require
from components.training.inputs import TrainingInputs
from components.training.loop import Curves, Stretch, train
from components.training.mismatch import FIRST
from components.training.params import Phase, TrainingParams
from components.training.ranks.distributed import World, gather_objects
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


def run(params: TrainingParams, inputs: TrainingInputs, outputs: Path, context: StageContext) -> dict[str, Any]:
    """Train all phases, export to ``outputs``, write and return the report.

    Raises:
        VitrailError: the machine cannot train this preset, an input is missing or damaged, or another run is at work
            on its state or output.
        components.training.loop.Stopped: a signal came; the training state is kept.
    """
    params = pinned_start(params)
    world = start(params)
    for phase in params.phases():
        require(inputs.preset, phase.params, world.size)
    with holding(world, context.scratch / outputs.name, outputs):
        return _run(params, inputs, outputs, context, world)


def _run(
    params: TrainingParams, inputs: TrainingInputs, outputs: Path, context: StageContext, world: World
) -> dict[str, Any]:
    storage, scratch = context.storage, context.scratch
    digest, init = data_digest(inputs.curated, inputs.manifest), started_from(params.init)
    kind: Literal["pretrain", "continue"] = "pretrain" if init is None else "continue"
    weights = {f"init {name}": found for name, found in init.sha256.items()} if init else {}
    if init is not None and not params.probe.scored and world.main:
        print("probe.benchmark is null: nothing tells whether the model that this run starts from is getting worse")
    params = fit_batch(params, inputs.manifest, world)
    phases = params.phases()
    preset, stores = outputs.name, list[Checkpoints]()
    for phase in phases:  # each phase's state depends on all before it, and lies in their folder
        before = {"earlier phase": stores[-1].fingerprint, FIRST: str(phase.first)} if stores else weights
        identity = phase.params.identity(digest, **before)
        copies = context.checkpoint_store(preset, phase.name)
        stores.append(open_checkpoints(scratch / preset / phase.name, phase.params, identity, world, copies))
        stores[0].changes.update(stores[-1].changes)  # which the MLflow run is told
    kept = keep_global_batch([phase.params for phase in phases], stores, world)
    phases = [phase._replace(params=own) for phase, own in zip(phases, kept, strict=True)]
    begun = _begun(stores)
    phase, curves, data = phases[begun], Curves(), (str(inputs.manifest), digest)
    learner = Pretraining(phase.params, world)
    seeds = seed_images(inputs.curated, inputs.manifest, storage, params.probe.pictures)
    subject = Subject(kind, preset, data, seeds)
    tracking, benchmarks = context.tracking, inputs.benchmarks
    with observe(subject, params, learner.engine, tracking, benchmarks, stores[0]) as observer:
        for number in range(begun, len(phases)):
            phase, saved = phases[number], stores[number]
            if number > begun:
                learner.engine.close()
                learner = Pretraining(phase.params, world)
            observer.enter(phase.params, learner.engine.average.module.backbone)
            label = f"pretrain {preset}" + (f", {phase.name}" if phase.name else "")
            for part, (until, anchors) in enumerate(phase.stretches()):
                loader = open_loader(phase.params, inputs, storage, world, scratch / "quarantine", anchors)
                if number > begun and part == 0:
                    curves = _enter(phases[number - 1], stores[number - 1], phase, learner, loader, world)
                stretch = Stretch(label, scratch, phase.first, curves, until, phases[-1].last)
                curves = train(learner, loader, phase.params, saved, observer, stretch)
        model_id = observer.register(phase.last, wait=10.0)
        origin = Origin(kind, stores[-1].fingerprint, digest, phase.last, model_id=model_id, init=init)
        export_average(outputs, learner.engine, phase.params, origin, curves, storage)
        earlier = [phase.params for phase in phases[:-1]]
        report = {
            "preset": preset,
            "parameters": count_parameters(phase.params),
            **summary(phase.params, world, curves, earlier),
        }
        if world.main:
            if context.report is not None:
                with atomic_file(context.report, "w") as file:
                    file.write(json.dumps(report, indent=1) + "\n")
            observer.finish(outputs, report)
    if not params.run.keep_state:
        stores[0].remove()
    return report


def _begun(stores: list[Checkpoints]) -> int:
    """The last phase that has saved something; 0 when none has. Alike on all ranks: the first one looks."""
    return int(gather_objects(max((i for i, store in enumerate(stores) if store.found()), default=0))[0])


def _enter(
    before: Phase, saved: Checkpoints, phase: Phase, learner: Pretraining, loader: Loader, world: World
) -> Curves:
    """Begin ``phase`` where ``before`` ended: weights, centres, place in the data and curves."""
    state = saved.load(earlier_lengths(learner.engine, before.params.vit))
    if state is None or state.step != before.last:
        raise VitrailError(f"{saved.folder}: the end of its phase was damaged on disk; run the same command again")
    carry_over(state, before.params.vit, learner.engine, phase.params.vit, learner.gram)
    loader.load_state_dict(state.shared["loader"])
    for name, center in state.whole.items():
        learner.centering.centers[name] = center.to(world.device)
    return Curves(**state.shared["curves"])
