"""The one place where an engine is made for a network with heads, by the parameters that all methods share."""

from __future__ import annotations

import copy

from components.learning.blocks import Block
from components.learning.heads import ProjectionHead
from components.learning.objective import Network
from components.learning.param_groups import param_groups
from components.training.params import TrainingParams
from components.training.ranks.distributed import World
from components.training.sharded.engine import Engine, Parts

HEADS = ("dino_head", "ibot_head")  # children of Network


def build_engine(network: Network, params: TrainingParams, world: World) -> Engine:
    """``network`` under ZeRO-3 as the student, and a copy of it as its moving average.

    Args:
        network: to train, fp32 on the CPU and equal on every rank. Afterwards no rank has it whole, so copy before
            what is needed of it.

    Raises:
        VitrailError: DeepSpeed refuses a value of ``params.engine.zero``.
    """
    network.backbone.checkpoint_blocks = params.run.activation_checkpointing
    groups = param_groups(
        network,
        params.groups.layer_decay,
        params.groups.patch_embed_multiplier,
        joins=params.init_heads is not None,
        frozen_blocks=params.groups.frozen_blocks,
    )
    parts = Parts(params.run.batch, clipped=("backbone", *HEADS), whole=(Block, ProjectionHead), heads=HEADS)
    return Engine(network, copy.deepcopy(network), groups, params.engine, world, parts)
