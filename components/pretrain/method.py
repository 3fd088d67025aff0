"""Pretraining: the student is shown masked crops, its moving average teaches (DINOv2, arXiv 2304.07193, section 4).
Or, with ``objective.kind: contrastive``, it tells the images of a batch apart, and the average is kept for evaluation.

The class token that the DINO loss sees on the global crops is of the *masked* crops, as in the released training; the
teacher sees them whole. Teacher and student heads run on hidden patches only.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from components.learning.collapse import feature_figures
from components.learning.collate import Crops
from components.learning.heads import BatchStandardised
from components.learning.losses.ibot import masked_patches
from components.learning.masks import sample_masks
from components.learning.objective import Centering, Losses, Network, contrastive_losses, health, losses, total
from components.learning.schedules import StepValues
from components.pretrain.start import starting_network
from components.training.build import build_engine
from components.training.params import TrainingParams
from components.training.ranks.distributed import World
from components.training.sharded.compiled import compile_blocks
from components.training.sharded.gram_teacher import GramTeacher


class Pretraining:
    """A student, its moving average, and the losses of the objective."""

    def __init__(self, params: TrainingParams, world: World, network: Network | None = None) -> None:
        """Build student, teacher and engine.

        Args:
            network: to start from, fp32 on the CPU and equal on every rank; None: the one that ``params`` name.

        Raises:
            VitrailError: the model ``params.init`` is missing, damaged or another network.
        """
        self.params, self.world = params, world
        network = starting_network(params) if network is None else network
        self.network = network
        # Copied before it is partitioned: afterwards no rank has it whole.
        anchor = None if params.gram is None else copy.deepcopy(network.backbone)
        self.engine = build_engine(network, params, world)
        if params.run.compile:
            compile_blocks(world.device, self.engine.student.module.backbone, self.engine.average.module.backbone)
        self.gram: GramTeacher | None = None
        if params.gram is not None and anchor is not None:
            self.gram = GramTeacher(params.gram.resolved(params.run.iterations), self.engine, anchor, params.grid())
        self._group = torch.distributed.group.WORLD if world.size > 1 else None
        for module in network.dino_head.modules():
            if isinstance(module, BatchStandardised):
                module.group = self._group
        self.centering = Centering(params.objective, params.heads, world.device, self._group)

    def seed_step(self, seed: int) -> None:
        """Start stochastic depth's draws anew."""
        self.network.backbone.seed_drop_path(seed)

    def losses(
        self, crops: Crops, values: StepValues, generator: np.random.Generator, detail: bool = False
    ) -> tuple[Losses, dict[str, Tensor]]:
        """See :class:`components.training.loop.Learner`."""
        if self.params.objective.kind == "contrastive":
            return self._contrastive(crops, detail)
        masks = sample_masks(len(crops.globals), self.params.grid(), self.params.masks, generator)
        return self.masked_losses(crops, masks.to(self.world.device), values, detail)

    def _contrastive(self, crops: Crops, detail: bool) -> tuple[Losses, dict[str, Tensor]]:
        """All views whole in one pass of the student; the moving average has no pass."""
        dtype = self.engine.dtype
        locals_ = crops.locals.to(dtype) if len(crops.locals) else None
        student = self.engine.student(crops.globals.to(dtype), locals_)
        found = contrastive_losses(student, self.params.objective, self._group)
        return found, feature_figures(student.cls, self._group) if detail else {}

    def masked_losses(
        self, crops: Crops, masks: Tensor, values: StepValues, detail: bool = False
    ) -> tuple[Losses, dict[str, Tensor]]:
        """The losses under given masks, bool ``[2B, N]``."""
        dtype = self.engine.dtype
        hidden = masked_patches(masks)
        globals_ = crops.globals.to(dtype)
        locals_ = crops.locals.to(dtype) if len(crops.locals) else None
        with torch.no_grad():
            teacher = self.engine.average(globals_, patches=hidden.positions)
            targets = self.centering.targets(teacher, values.teacher_temperature)
        student = self.engine.student(globals_, locals_, masks, hidden.positions, dense=self.gram is not None)
        found = losses(student, targets, hidden.weights, self.params.objective, self._group)
        if self.gram is not None and student.patches is not None:
            found = total(found.terms | {"gram": self.gram.loss(student.patches, crops)})
        return found, health(teacher, targets, self._group) if detail else {}
