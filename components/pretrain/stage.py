"""The pretrain stage: from the manifest of curated images to the exported teacher."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from components.errors import VitrailError
from components.evaluation.online import observe
from components.evaluation.seeds import seed_images
from components.images.loader import Loader
from components.learning.export import BACKBONE, HEADS, load_card
from components.pretrain.method import Pretraining
from components.storage import StorageParams, atomic_file
from components.training.capability import count_parameters, require
from components.training.checkpoint import Checkpoints
from components.training.command import Paths
from components.training.distributed import World, gather_objects
from components.training.loop import Curves, train
from components.training.params import Phase, TrainingParams
from components.training.resolution import carry_over, earlier_lengths
from components.training.session import (
    data_digest,
    export_average,
    keep_global_batch,
    open_checkpoints,
    open_loader,
    start,
    summary,
)


def pretrain(params: TrainingParams, paths: Paths, storage: StorageParams) -> dict[str, Any]:
    """Train all phases, export to ``paths.out``, write and return the report.

    Raises:
        VitrailError: the machine cannot train this preset, or an input is missing or damaged.
        components.training.loop.Stopped: a signal came; the training state is kept.
    """
    digest, started_from = data_digest(paths.curated, paths.manifest), _digests(params.init)
    world, phases = start(params), params.phases()
    for phase in phases:
        require(paths.params, phase.params, world.size)
    preset, fingerprints, stores = paths.out.name, list[str](), list[Checkpoints]()
    for phase in phases:  # each phase's state depends on all before it, and lies in their folder
        fingerprints.append(phase.params.fingerprint(digest, *started_from, *fingerprints))
        folder = paths.scratch / preset / phase.name
        stores.append(open_checkpoints(folder, phase.params, fingerprints[-1], world))
    kept = keep_global_batch([phase.params for phase in phases], stores, world)
    phases = [phase._replace(params=own) for phase, own in zip(phases, kept, strict=True)]
    begun = _begun(stores)
    phase, curves, data = phases[begun], Curves(), (str(paths.manifest), digest)
    learner = Pretraining(phase.params, world)
    seeds = seed_images(paths.curated, paths.manifest, storage, params.probe.pictures)
    noted = (paths.tracking, paths.benchmarks, data, seeds, stores[0])
    with observe("pretrain", preset, params, learner.engine, *noted) as observer:
        for number in range(begun, len(phases)):
            phase, saved = phases[number], stores[number]
            if number > begun:
                learner.engine.close()
                learner = Pretraining(phase.params, world)
            observer.enter(phase.params, learner.engine.average.module.backbone)
            label = f"pretrain {preset}" + (f", {phase.name}" if phase.name else "")
            for part, (until, anchors) in enumerate(phase.stretches()):
                quarantine = paths.scratch / "quarantine"
                loader = open_loader(phase.params, paths.curated, paths.manifest, storage, world, quarantine, anchors)
                if number > begun and part == 0:
                    curves = _enter(phases[number - 1], stores[number - 1], phase, learner, loader, world)
                where = (label, paths.scratch, phase.first)
                curves = train(
                    learner, loader, phase.params, saved, observer, world, *where, curves, until, phases[-1].last
                )
        model_id = observer.register(phase.last)
        export_average(
            paths.out,
            learner.engine,
            phase.params,
            "pretrain",
            fingerprints[-1],
            digest,
            curves,
            storage,
            model_id=model_id,
            step=phase.last,
        )
        earlier = [phase.params for phase in phases[:-1]]
        report = {
            "preset": preset,
            "parameters": count_parameters(phase.params),
            **summary(phase.params, world, curves, earlier),
        }
        if world.main:
            with atomic_file(paths.report, "w") as file:
                file.write(json.dumps(report, indent=1) + "\n")
            observer.finish(paths.out, report)
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


def _digests(folder: str | None) -> list[str]:
    """SHA-256 (hex) of the weights that a run starts from.

    Raises:
        VitrailError: there are none.
    """
    if folder is None:
        return []
    load_card(Path(folder))
    found = []
    for name in (BACKBONE, HEADS):
        with open(Path(folder) / name, "rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found
