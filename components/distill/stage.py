"""The distill stage: from a frozen teacher and the manifest to the exported student."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from components.distill.method import Distillation, DistillParams, check_teacher, load_teacher
from components.evaluation.online import observe
from components.evaluation.seeds import seed_images
from components.learning.export import BACKBONE, HEADS, load_card
from components.storage import StorageParams, atomic_file
from components.training.capability import count_parameters, require
from components.training.command import Paths
from components.training.loop import train
from components.training.session import (
    data_digest,
    export_average,
    keep_global_batch,
    open_checkpoints,
    open_loader,
    start,
    summary,
)


def distill(params: DistillParams, paths: Paths, teacher_at: Path, storage: StorageParams) -> dict[str, Any]:
    """Train a student of the teacher exported to ``teacher_at``; export to ``paths.out``, write and return the report.

    Raises:
        VitrailError: the machine cannot train this preset, or an input is missing, damaged or does not fit.
        components.training.loop.Stopped: a signal came; the training state is kept.
    """
    card = load_card(teacher_at)
    check_teacher(params, card, teacher_at)
    digest = data_digest(paths.curated, paths.manifest)
    world = start(params)
    teacher = load_teacher(teacher_at)
    require(paths.params, params, world.size, sum(p.numel() for p in teacher.parameters()))
    label, preset = f"distill {paths.out.name}", paths.out.name
    fingerprint = params.fingerprint(digest, *(_digest(teacher_at / name) for name in (BACKBONE, HEADS)))
    checkpoints = open_checkpoints(paths.scratch / preset, params, fingerprint, world)
    [params] = keep_global_batch([params], [checkpoints], world)
    loader = open_loader(params, paths.curated, paths.manifest, storage, world, paths.scratch / "quarantine")
    learner = Distillation(params, teacher, world)
    seeds = seed_images(paths.curated, paths.manifest, storage, params.probe.pictures)
    data = (str(paths.manifest), digest)
    noted = (paths.tracking, paths.benchmarks, data, seeds, checkpoints)
    with observe("distill", preset, params, learner.engine, *noted) as observer:
        curves = train(learner, loader, params, checkpoints, observer, world, label, paths.scratch)
        model_id = observer.register(params.run.iterations)
        export_average(
            paths.out,
            learner.engine,
            params,
            "distill",
            fingerprint,
            digest,
            curves,
            storage,
            card.preset,
            model_id=model_id,
        )
        report = {
            "preset": preset,
            "teacher": card.preset,
            "parameters": count_parameters(params),
            **summary(params, world, curves),
        }
        if world.main:
            with atomic_file(paths.report, "w") as file:
                file.write(json.dumps(report, indent=1) + "\n")
            observer.finish(paths.out, report)
    if not params.run.keep_state:
        checkpoints.remove()
    return report


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
