"""Which parameter learns how fast and decays or not: layer-wise decay, decided by names alone.

Names, not shapes, for ZeRO-3 leaves every parameter flat and empty on most ranks.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from components.params import CHANGES, Strict


class ParamGroupParams(Strict):
    """Multipliers of the learning rate."""

    effect: ClassVar = CHANGES
    layer_decay: float = Field(
        default=1.0, gt=0, le=1
    )  # a block below learns this much slower; 0.9 in the short recipe
    patch_embed_multiplier: float = Field(default=0.2, ge=0, le=10.0)
    # first blocks, with the embeddings below them, that keep the weights of `init` to the end; 0: none
    frozen_blocks: int = Field(default=0, ge=0, le=1000)


_EMBEDDING = re.compile(r"(^|\.)(patch_embed|pos_embed|cls_token|mask_token|register_tokens)(\.|$)")
_BLOCK = re.compile(r"(^|\.)blocks\.(\d+)\.")


def layer_of(name: str, depth: int) -> int:
    """0 for the embeddings, i + 1 for block i, ``depth + 1`` for the final norm and heads."""
    if _EMBEDDING.search(name):
        return 0
    block = _BLOCK.search(name)
    return int(block.group(2)) + 1 if block else depth + 1


def learning_rate_multiplier(name: str, depth: int, layer_decay: float, patch_embed_multiplier: float) -> float:
    """``layer_decay ** (depth + 1 - layer)``, times ``patch_embed_multiplier`` for the patch embedding."""
    multiplier = layer_decay ** (depth + 1 - layer_of(name, depth))
    return multiplier * patch_embed_multiplier if "patch_embed" in name else multiplier


def weight_decay_multiplier(name: str) -> float:
    """0 for biases, norms and LayerScale; position embeddings and tokens do decay, as in the original."""
    return 0.0 if name.endswith(".bias") or name == "bias" or "norm" in name or "gamma" in name else 1.0


def param_groups(
    module: nn.Module,
    layer_decay: float = 1.0,
    patch_embed_multiplier: float = 0.2,
    joins: bool = False,
    frozen_blocks: int = 0,
) -> list[dict[str, Any]]:
    """Optimizer groups of ``module``'s trainable parameters, those with equal multipliers merged.

    Args:
        joins: parameters below ``backbone.`` are in groups of their own (``is_backbone``), with a rate of their own.
        frozen_blocks: so many first blocks, and the embeddings, have the multiplier 0; 0: none.

    Returns:
        Dicts with ``params``, their ``names``, ``lr_multiplier``, ``wd_multiplier`` and ``is_last_layer`` (a head's
        prototypes, whose rate is 0 while frozen), in a fixed order. ``lr`` and ``weight_decay`` are the schedule's.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    numbers = [int(found.group(2)) for name, _ in named if (found := _BLOCK.search(name))]
    depth = max(numbers) + 1 if numbers else 0
    groups: dict[tuple[float, float, bool, bool], dict[str, Any]] = {}
    for name, parameter in named:
        frozen = frozen_blocks > 0 and layer_of(name, depth) <= frozen_blocks
        key = (
            0.0 if frozen else learning_rate_multiplier(name, depth, layer_decay, patch_embed_multiplier),
            weight_decay_multiplier(name),
            "last_layer" in name,
            joins and name.startswith("backbone."),
        )
        if key not in groups:
            multipliers = {"lr_multiplier": key[0], "wd_multiplier": key[1], "is_last_layer": key[2]}
            multipliers |= {"is_backbone": True} if key[3] else {}
            groups[key] = {"params": [], "names": [], **multipliers}
        groups[key]["params"].append(parameter)
        groups[key]["names"].append(name)
    return list(groups.values())
