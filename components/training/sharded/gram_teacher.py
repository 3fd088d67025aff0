"""The gram teacher: a frozen copy of the moving average at its best for dense tasks, to whose patches' similarities the
student is held late in a long run, when dense features decay while class tokens still improve (arXiv 2508.10104,
section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from components.learning.collate import Crops
from components.learning.losses.gram import gram_loss, resample_patches
from components.learning.schedules import Length
from components.learning.vit import VisionTransformer
from components.params import CHANGES, Strict
from components.training.sharded.engine import Engine


class GramParams(Strict):
    """When the gram teacher is taken and how much it counts."""

    effect: ClassVar = CHANGES
    weight: float = Field(2.0, gt=0, le=1000.0)
    teacher_at: Length  # iterations after which the average is copied; shares of the run with a point
    start: Length  # iteration from which on the term counts
    refresh_every: int = Field(
        10_000, ge=1, le=10**12
    )  # iterations from the start on between two copies of the newest average
    refreshes: int = Field(3, ge=0, le=1000)  # how often at most; 0: the first copy stays
    size: int | None = Field(None, ge=8, le=8192)  # px of its crops, uncoloured; null: it sees the student's own

    def resolved(self, total: int) -> Self:
        """With iterations of a run of ``total`` in the place of shares."""
        found = {name: getattr(self, name) for name in ("teacher_at", "start")}
        steps = {name: round(v * total) if isinstance(v, float) else v for name, v in found.items()}
        return self.model_copy(update=steps)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if type(self.teacher_at) is type(self.start) and self.start < self.teacher_at:
            raise ValueError(f"start {self.start} lies before teacher_at {self.teacher_at}")
        return self

    def check(self, total: int, patch: int) -> None:
        """Nothing when this fits a run of ``total`` iterations with patches of ``patch`` px.

        Raises:
            ValueError: it does not.
        """
        steps = self.resolved(total)
        if not 0 < steps.teacher_at <= steps.start < total:
            raise ValueError(
                f"gram: expected 0 < teacher_at <= start < run.iterations, found {steps.teacher_at}, {steps.start} "
                f"and {total} iterations"
            )
        if self.size is not None and self.size % patch:
            near = max(1, round(self.size / patch)) * patch
            raise ValueError(f"gram.size {self.size} is no multiple of vit.patch_size {patch}; use for instance {near}")


class GramTeacher:
    """A backbone partitioned like the others, filled from the moving average when its time has come.

    Args:
        params: with iterations, not shares (:meth:`GramParams.resolved`).
        backbone: of the student's shape, taken over; its weights are of no account.
        grid: rows and columns of patches of the student's global crops.
    """

    def __init__(self, params: GramParams, engine: Engine, backbone: VisionTransformer, grid: tuple[int, int]) -> None:
        self.params, self._engine, self._grid = params, engine, grid
        self._network = engine.frozen(backbone)
        self._patch = backbone.config.patch_size
        again = (int(params.start) + (i + 1) * params.refresh_every for i in range(params.refreshes))
        self._due = {int(params.teacher_at), *again}
        self._taken = self.counts = False

    def before(self, step: int) -> None:
        """Called before ``step`` (from 0): take the average if it is time."""
        if step in self._due:
            self.fill(self._engine.ema.state())
        self.counts = step >= self.params.start

    def fill(self, shards: Mapping[str, Tensor]) -> None:
        """Take over this rank's ``shards``, named as in the student; those of heads are passed over."""
        own = {name: shards[f"backbone.{name}"] for name, _ in self._network.module.named_parameters()}
        self._engine.write(self._network, own)
        self._taken = True

    def state(self) -> dict[str, Tensor]:
        """This rank's shards for a checkpoint, ``gram/NAME``; none before the first copy."""
        if not self._taken:
            return {}
        named = self._network.module.named_parameters()
        return {f"gram/backbone.{name}": parameter.ds_tensor.data.clone() for name, parameter in named}

    def load(self, shards: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` gave, out of all shards of a checkpoint."""
        own = {name.removeprefix("gram/"): shard for name, shard in shards.items() if name.startswith("gram/")}
        if own:
            self.fill(own)

    def loss(self, student: Tensor, crops: Crops) -> Tensor:
        """The weighted term for the student's patches ``[2B, N, D]``; zero until it counts."""
        if not self.counts:
            return torch.zeros((), device=student.device)
        images = (crops.globals if crops.anchors is None else crops.anchors).to(self._engine.dtype)
        with torch.no_grad():
            patches = self._network(images).patches
        grid = (images.shape[-2] // self._patch, images.shape[-1] // self._patch)
        return self.params.weight * gram_loss(student, resample_patches(patches, grid, self._grid))
