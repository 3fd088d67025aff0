"""Weights of other implementations in this one's names: Meta's released files and Hugging Face's Dinov2 models.

Strict: a name that is missing, left over or of another shape is an error that lists it. (Files loaded loosely, such as
those of a register model into one without, give features that look fine and are not.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from components.errors import VitrailError
from components.learning.embed import Interpolation
from components.learning.vit import VisionTransformer, ViTConfig

# (pattern, replacement), tried in order on every name; {q,k,v} parts and gates are joined afterwards
_TRANSFORMERS = [
    (r"^(dinov2(_with_registers)?\.)", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "embeddings.patch_embed."),
    (r"^embeddings\.position_embeddings$", "embeddings.pos_embed"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attn\.query\.", ".attn.q."),
    (r"\.attn\.key\.", ".attn.k."),
    (r"\.attn\.value\.", ".attn.v."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
]
_OFFICIAL = [
    (r"^patch_embed\.proj\.", "embeddings.patch_embed."),
    (r"^(cls_token|pos_embed|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # the originals of ViT-g keep their blocks in chunks
]
_JOINED = [("attn.qkv", ("attn.q", "attn.k", "attn.v")), ("mlp.w12", ("mlp.gate_proj", "mlp.up_proj"))]


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` of Hugging Face's Dinov2 models or of Meta's released backbones, in this project's names."""
    rules = _OFFICIAL if "patch_embed.proj.weight" in state else _TRANSFORMERS
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for whole, parts in _JOINED:
        for name in [name for name in renamed if f".{parts[0]}." in name]:
            names = [name.replace(parts[0], part) for part in parts]
            joined = torch.cat([renamed.pop(part) for part in names])
            renamed[name.replace(parts[0], whole)] = joined
    if (mask := renamed.get("embeddings.mask_token")) is not None:
        renamed["embeddings.mask_token"] = mask.reshape(1, -1)
    return renamed


def infer_config(
    state: Mapping[str, Tensor], heads: int | None = None, interpolation: Interpolation | None = None
) -> ViTConfig:
    """The configuration that converted weights ``state`` fit.

    Args:
        state: from :func:`convert`.
        heads: attention heads, which no shape tells; the released models' 64 channels a head when None.
        interpolation: "size" with registers and "offset" without when None, as the released models.

    Raises:
        VitrailError: the weights are of no model of this kind.
    """
    try:
        patch = state["embeddings.patch_embed.weight"]
        positions = state["embeddings.pos_embed"].shape[1] - 1
        ffn = state.get("blocks.0.mlp.fc1.weight", state.get("blocks.0.mlp.w12.weight"))
        assert ffn is not None
    except (KeyError, AssertionError):
        shown = ", ".join(list(state)[:3])
        raise VitrailError(f"weights with names such as {shown}: not those of a DINOv2 vision transformer") from None
    dim, channels, patch_size, _ = patch.shape
    registers = state.get("embeddings.register_tokens")
    gamma = state.get("blocks.0.ls1.gamma")
    swiglu = "blocks.0.mlp.w12.weight" in state
    return ViTConfig(
        image_size=math.isqrt(positions) * patch_size,
        patch_size=patch_size,
        in_channels=channels,
        embed_dim=dim,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        heads=heads or dim // 64,
        ffn="swiglu" if swiglu else "mlp",
        mlp_ratio=4.0 if swiglu else ffn.shape[0] / dim,
        registers=0 if registers is None else registers.shape[1],
        layerscale_init=None if gamma is None else 1e-5,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        interpolation=interpolation or ("offset" if registers is None else "size"),
    )


def load_strict(model: VisionTransformer, state: Mapping[str, Tensor], where: str) -> None:
    """Copy converted weights into ``model``.

    Raises:
        VitrailError: names or shapes differ; the message begins with ``where`` and lists the first of each.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    faults = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    told = [f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in faults.items() if names]
    if told:
        raise VitrailError(f"{where}: weights do not fit this model: {'; '.join(told)}; check registers, size and ffn")
    model.load_state_dict(dict(state))
