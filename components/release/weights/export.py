"""A loaded model as files."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from components.learning.export import CARD, export_model
from components.release.weights.load import LoadedModel
from components.release.weights.outputs import check_replaceable


def save_model(model: LoadedModel, out: Path) -> None:
    """Write ``model`` as an export of ours: ``model.json`` and safetensors. ``out`` is replaced as a whole.

    Raises:
        VitrailError: ``out`` holds something else.
    """
    check_replaceable(out, CARD)
    export_model(out, model.backbone.state_dict(), model.card, head_states(model))


def head_states(model: LoadedModel) -> dict[str, Tensor]:
    """The heads' weights, below ``dino_head.`` and ``ibot_head.``; empty where there are none."""
    heads = {"dino_head": model.dino_head, "ibot_head": model.ibot_head}
    return {f"{n}.{k}": v for n, head in heads.items() if head is not None for k, v in head.state_dict().items()}


def described(model: LoadedModel) -> str:
    """One line on what the model is."""
    vit = model.card.vit
    size = sum(parameter.numel() for parameter in model.backbone.parameters())
    parts = [
        f"{model.card.kind} {model.card.preset}",
        f"{vit.embed_dim} channels, {vit.depth} blocks, {vit.heads} heads, {vit.ffn}",
        f"patches of {vit.patch_size} px, positions for {vit.image_size} px, {vit.registers} registers",
        f"{size / 1e6:.1f} M parameters",
    ]
    heads = {"DINO": model.dino_head, "iBOT": model.ibot_head}
    told = [
        f"{name} {head.config.prototypes} prototypes" for name, head in heads.items() if head and head.config.prototypes
    ]
    if model.dino_head is not None and not told:
        return "; ".join([*parts, f"projection head without prototypes, {model.dino_head.config.bottleneck} channels"])
    return "; ".join([*parts, f"projection heads: {', '.join(told)}" if told else "no projection heads"])
