"""The pretrain stage: from the manifest of curated images to the exported teacher."""

from __future__ import annotations

import json
from typing import Any

from components.evaluation.online import observe
from components.evaluation.seeds import seed_images
from components.learning.capability import count_parameters, require
from components.learning.command import Paths
from components.learning.loop import train
from components.learning.session import (
    data_digest,
    export_average,
    open_checkpoints,
    open_loader,
    start,
    summary,
)
from components.learning.training import TrainingParams
from components.pretrain.method import Pretraining
from components.storage import StorageParams, atomic_file


def pretrain(params: TrainingParams, paths: Paths, storage: StorageParams) -> dict[str, Any]:
    """Train, export to ``paths.out``, write and return the report.

    Raises:
        VitrailError: the machine cannot train this preset, or an input is missing or damaged.
        components.learning.loop.Stopped: a signal came; the training state is kept.
    """
    digest = data_digest(paths.curated, paths.manifest)
    world = start(params)
    require(paths.params, params, world.size)
    label, preset = f"pretrain {paths.out.name}", paths.out.name
    fingerprint = params.fingerprint(digest)
    loader = open_loader(params, paths.curated, paths.manifest, storage, world, paths.scratch / "quarantine")
    checkpoints = open_checkpoints(paths.scratch / preset, params, fingerprint, world)
    learner = Pretraining(params, world)
    seeds = seed_images(paths.curated, paths.manifest, storage, params.probe.pictures)
    data = (str(paths.manifest), digest)
    with observe("pretrain", preset, params, learner.engine, paths.tracking, paths.benchmarks, data, seeds) as observer:
        curves = train(learner, loader, params, checkpoints, observer, world, label)
        model_id = observer.register(params.run.iterations)
        export_average(
            paths.out, learner.engine, params, "pretrain", fingerprint, digest, curves, storage, model_id=model_id
        )
        report = {"preset": preset, "parameters": count_parameters(params), **summary(params, world, curves)}
        if world.main:
            with atomic_file(paths.report, "w") as file:
                file.write(json.dumps(report, indent=1) + "\n")
            observer.finish(paths.out, report)
    if not params.run.keep_state:
        checkpoints.remove()
    return report
