"""A network trained on small images goes on with larger ones: its position embeddings are interpolated once.

DINOv2 ends its training with 10,000 iterations at 518 px from the weights of the run at 224 px, every schedule
compressed into them (arXiv 2304.07193, sections 4 and 6.6 and appendix B.2). What is computed does not jump at the
switch: a network gives global crops of the new size the same features before it, interpolating on the fly, and after.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from components.learning.embed import Interpolation, interpolate_positions
from components.learning.vit import ViTConfig
from components.params import CHANGES, Strict
from components.training.checkpoints.checkpoint import Checkpoint
from components.training.ranks.distributed import gather_shards
from components.training.sharded.engine import Engine
from components.training.sharded.gram_teacher import GramTeacher

POSITIONS = "backbone.embeddings.pos_embed"


class HighResolutionParams(Strict):
    """The phase at the end of a run. The paper publishes size and length; the rest is for the user to choose."""

    effect: ClassVar = CHANGES
    size: int = Field(518, ge=8, le=8192)  # px of a global crop and of the table of position embeddings
    local_size: int | None = Field(None, ge=8, le=8192)  # px; unpublished; null: as before
    iterations: int = Field(10_000, ge=1, le=10**12)  # optimizer steps
    learning_rate: float = Field(gt=0, le=10.0)  # peak, by the schedule's rule; unpublished but for being lower
    gram_size: int | None = Field(None, ge=8, le=8192)  # px of a gram teacher's crops; null: it sees the student's
    batch: int | None = Field(None, ge=1, le=1_000_000)  # images a rank and micro-batch; null: as before
    accumulation: int | None = Field(None, ge=1, le=1_000_000)  # micro-batches a step; null: as before

    def check(self, patch: int) -> None:
        """Nothing when crops can be cut into patches of ``patch`` px.

        Raises:
            ValueError: they cannot; names a size that can.
        """
        for name in ("size", "local_size", "gram_size"):
            size = getattr(self, name)
            if size is not None and size % patch:
                near = max(1, round(size / patch)) * patch
                raise ValueError(
                    f"high_resolution.{name} {size} is no multiple of vit.patch_size {patch}; use for instance {near}"
                )


def resized_positions(table: Tensor, grid: tuple[int, int], how: Interpolation) -> Tensor:
    """A table ``[1, 1 + n * n, D]`` of position embeddings, the class token's first, for ``grid`` (rows, columns)."""
    cls, patches = table.split([1, table.shape[1] - 1], dim=1)
    return torch.cat([cls, interpolate_positions(patches, grid, how)], dim=1)


def earlier_lengths(engine: Engine, vit: ViTConfig) -> dict[str, int]:
    """Elements of this rank's shard of each parameter of ``engine``'s network, had it the position table of ``vit``."""
    lengths = {name: shard.numel() for name, shard in engine.ema.state().items()}
    table = (1 + (vit.image_size // vit.patch_size) ** 2) * vit.embed_dim
    return lengths | {POSITIONS: -(-table // engine.world.size)}


@torch.no_grad()
def carry_over(
    state: Checkpoint, earlier: ViTConfig, engine: Engine, vit: ViTConfig, gram: GramTeacher | None = None
) -> None:
    """Give ``engine``, whose network is ``vit``, the weights that a run of the network ``earlier`` ended with.

    Student, moving average and gram teacher are taken, each with its own position embeddings interpolated; all else
    keeps its shape and so its place among the ranks. AdamW begins anew: its second moments have no meaning on another
    grid.

    Args:
        state: cut for this number of ranks with :func:`earlier_lengths`.
    """
    side = vit.image_size // vit.patch_size
    shape = (1, 1 + (earlier.image_size // earlier.patch_size) ** 2, earlier.embed_dim)
    shards = {}
    for name, shard in state.shards.items():
        kind, _, parameter = name.partition("/")
        if kind in ("master", "ema", "gram"):
            if parameter == POSITIONS:
                whole = gather_shards(shard.to(engine.world.device))[: shape[1] * shape[2]].view(shape)
                shard = engine.cut(POSITIONS, resized_positions(whole, (side, side), vit.interpolation))
            shards[name] = shard
    rest = {"adam_steps": 0.0, "loss_scaler": state.shared["engine"]["loss_scaler"], "skipped_in_a_row": 0}
    engine.load(shards, rest)
    if gram is not None:
        gram.load(shards)
