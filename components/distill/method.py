"""Distillation: a larger, frozen network with its heads is the teacher (DINOv2, arXiv 2304.07193, section 5).

The losses are pretraining's. The student sees its crops unmasked and without stochastic depth, and the iBOT loss is on
all patches of both global crops, or on those that pretraining would have hidden. A moving average of the student,
which teaches nobody, is what is exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.errors import VitrailError
from components.learning.collate import Crops
from components.learning.export import ModelCard
from components.learning.losses.ibot import masked_patches
from components.learning.masks import sample_masks
from components.learning.objective import Centering, Losses, Network, build_network, health, losses
from components.learning.schedules import StepValues
from components.params import CHANGES
from components.release.weights.load import LoadedModel
from components.training.build import build_engine
from components.training.params import TrainingParams
from components.training.ranks.distributed import World
from components.training.sharded.compiled import compile_blocks
from components.training.sharded.gram_teacher import GramTeacher


class DistillParams(TrainingParams):
    """``params/distill/*.yaml``."""

    # of the iBOT loss: DINOv2's authors took all, DINOv3's code the masked ones
    patches: Annotated[Literal["all", "masked"], CHANGES] = Field("all")

    def patches_taught(self) -> float:
        """As in pretraining, or all."""
        return 1.0 if self.patches == "all" else super().patches_taught()

    @model_validator(mode="after")
    def _of_distillation(self) -> Self:
        if self.objective.kind != "dino":
            raise ValueError(f"objective.kind: {self.objective.kind}: a teacher teaches by prototypes; set dino")
        if self.vit.drop_path:
            raise ValueError("vit.drop_path: distillation runs without stochastic depth; set it to 0")
        for name in ("init", "init_heads", "high_resolution", "gram"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: of pretraining only; distillation has no such thing")
        return self


def check_teacher(params: DistillParams, card: ModelCard, folder: str | Path) -> None:
    """Nothing when a student of ``params`` can learn from the teacher of ``card``.

    Raises:
        VitrailError: grids or prototypes differ, the normalisation differs, or the teacher has no heads.
    """
    if card.dino_head is None:
        raise VitrailError(f"{folder}: this teacher was exported without heads; distillation needs them")
    if not card.dino_head.prototypes:
        raise VitrailError(
            f"{folder}: this teacher was trained without prototypes (objective.kind: contrastive); distillation needs "
            "them: continue it with objective.kind: dino and init_heads first"
        )
    own = (params.heads.dino, params.heads.ibot or params.heads.dino)
    its = (card.dino_head, card.ibot_head or card.dino_head)
    for name, student, teacher in zip(("dino", "ibot"), own, its, strict=True):
        if student.prototypes != teacher.prototypes:
            raise VitrailError(
                f"heads.{name}.prototypes: {student.prototypes}, the teacher {folder} has {teacher.prototypes}; "
                "they must be equal (hidden and bottleneck may differ)"
            )
    if params.vit.patch_size != card.vit.patch_size:
        raise VitrailError(
            f"vit.patch_size: {params.vit.patch_size} px, the teacher {folder} has {card.vit.patch_size} px; "
            "their patches must be the same"
        )
    if params.augment.mean != card.mean or params.augment.std != card.std:
        raise VitrailError(f"augment.mean and std: must be the teacher's ({folder}): {card.mean}, {card.std}")


def teacher_of(loaded: LoadedModel) -> Network:
    """The loaded network with its heads, fp32, which :func:`check_teacher` has seen to be there."""
    assert loaded.dino_head is not None
    return Network(loaded.backbone, loaded.dino_head, loaded.ibot_head)


class Distillation:
    """A student, the frozen teacher, and the student's spare moving average."""

    def __init__(self, params: DistillParams, teacher: Network, world: World) -> None:
        self.params, self.world = params, world
        network = build_network(params.vit, params.heads, params.run.seed)
        self.network = network
        self.engine = build_engine(network, params, world)
        self._teacher = self.engine.frozen(teacher)
        if params.run.compile:
            compile_blocks(world.device, self.engine.student.module.backbone, self._teacher.module.backbone)
        self.gram: GramTeacher | None = None
        self._group = torch.distributed.group.WORLD if world.size > 1 else None
        self.centering = Centering(params.objective, params.heads, world.device, self._group)

    def seed_step(self, seed: int) -> None:
        """Nothing here is drawn at random but the choice of patches."""

    def losses(
        self, crops: Crops, values: StepValues, generator: np.random.Generator, detail: bool = False
    ) -> tuple[Losses, dict[str, Tensor]]:
        """See :class:`components.training.loop.Learner`."""
        dtype, count = self.engine.dtype, len(crops.globals)
        grid = self.params.grid()
        if self.params.patches == "masked":
            chosen = sample_masks(count, grid, self.params.masks, generator)
        else:
            chosen = torch.ones(count, grid[0] * grid[1], dtype=torch.bool)
        patches = masked_patches(chosen.to(self.world.device))
        globals_ = crops.globals.to(dtype)
        locals_ = crops.locals.to(dtype) if len(crops.locals) else None
        with torch.no_grad():
            teacher = self._teacher(globals_, patches=patches.positions)
            targets = self.centering.targets(teacher, values.teacher_temperature)
        student = self.engine.student(globals_, locals_, None, patches.positions)
        found = losses(student, targets, patches.weights, self.params.objective, self._group)
        return found, health(teacher, targets, self._group) | {"student_std": _spread(student.cls)} if detail else {}


@torch.no_grad()
def _spread(cls: Tensor) -> Tensor:
    features = torch.nn.functional.normalize(cls.float(), dim=-1)
    spread: Tensor = features.std(0).mean() * cls.shape[-1] ** 0.5
    return spread
