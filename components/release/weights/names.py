"""Names of weights: those of Meta's files and of Hugging Face's Dinov2 models, to this project's names and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from components.errors import VitrailError

T = TypeVar("T")
WeightsLayout = Literal["official", "transformers", "own"]

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
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # files trained under FSDP keep their blocks in chunks
]
_HEAD = [
    (r"^last_layer\.parametrizations\.weight\.original0$", "last_layer.weight_g"),  # torch's newer weight_norm
    (r"^last_layer\.parametrizations\.weight\.original1$", "last_layer.weight_v"),
    (r"^mlp\.(weight|bias)$", r"mlp.0.\1"),  # the MLP of one layer has no number
]
_JOINED = [("attn.qkv", ("attn.q", "attn.k", "attn.v")), ("mlp.w12", ("mlp.gate_proj", "mlp.up_proj"))]
# What DDP, FSDP, torch.compile and activation checkpointing put into names
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PARTS = ("backbone", "dino_head", "ibot_head")


class Weights(NamedTuple):
    """A state dict in this project's names, part by part."""

    backbone: dict[str, Tensor]
    dino_head: dict[str, Tensor]  # empty: none
    ibot_head: dict[str, Tensor]  # empty: none, or shared with the DINO head
    layout: WeightsLayout


def weights_of(content: Any, where: str) -> Weights:
    """The weights in what a checkpoint file holds.

    Takes a backbone's state dict, or a training checkpoint: the state of the ``teacher`` (the averaged network, which
    is what the authors evaluate) with ``backbone.``, ``dino_head.`` and ``ibot_head.`` before the names.

    Raises:
        VitrailError: no weights, or names of no known part; the message begins with ``where``.
    """
    state = _unwrapped(_teacher(content, where), where)
    if others := [name for name, tensor in state.items() if not isinstance(tensor, Tensor)]:
        raise VitrailError(f"{where}: {listed(others)} are no tensors; a state dict of a DINOv2 model is wanted")
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in _PARTS}
    if any(name.startswith("backbone.") for name in state):
        strange = []
        for name, tensor in state.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = tensor
            else:
                strange.append(name)
        if strange:
            raise VitrailError(f"{where}: weights beside backbone and heads: {listed(strange)}; remove them first")
    else:
        parts["backbone"] = state
    backbone, layout = _backbone(parts["backbone"], where)
    heads = [_all_renamed(parts[part], _HEAD, where) for part in _PARTS[1:]]
    return Weights(backbone, heads[0], heads[1], layout)


def convert(state: Mapping[str, Tensor], where: str = "weights") -> dict[str, Tensor]:
    """A backbone's ``state`` of Hugging Face's Dinov2 models or of Meta's files, in this project's names.

    Raises:
        VitrailError: two names are one in this project; the message begins with ``where``.
    """
    rules = _OFFICIAL if "patch_embed.proj.weight" in state else _TRANSFORMERS
    renamed = _all_renamed(state, rules, where)
    for whole, parts in _JOINED:
        for name in [name for name in renamed if f".{parts[0]}." in name]:
            names = [name.replace(parts[0], part) for part in parts]
            shapes = {tuple(renamed[part].shape[1:]) for part in names if part in renamed and renamed[part].dim()}
            # Else they stay, and are listed as unexpected.
            if len(shapes) == 1 and all(part in renamed and renamed[part].dim() for part in names):
                joined = torch.cat([renamed.pop(part) for part in names])
                renamed[name.replace(parts[0], whole)] = joined
    if (mask := renamed.get("embeddings.mask_token")) is not None and mask.dim() != 2:
        renamed["embeddings.mask_token"] = mask.reshape(1, -1)
    return renamed


def official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's ``state`` in the names of Meta's files, blocks not in chunks, as those that were released."""
    named = {}
    for name, tensor in state.items():
        name = name.replace("embeddings.patch_embed.", "patch_embed.proj.").replace("embeddings.", "")
        named[name] = tensor
    return named


def listed(names: list[str], most: int = 3) -> str:
    """``a, b, c and 7 more``."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _teacher(content: Any, where: str) -> Mapping[str, Any]:
    """The state dict in ``content``: the teacher's of a training checkpoint."""
    if not isinstance(content, Mapping):
        raise VitrailError(f"{where}: holds a {type(content).__name__}; a state dict of a DINOv2 model is wanted")
    for key in ("teacher", "model", "state_dict"):
        inner = content.get(key)
        if isinstance(inner, Mapping):
            names = _unwrapped(inner, where).items()
            taught = {name.removeprefix("teacher."): tensor for name, tensor in names if name.startswith("teacher.")}
            return taught or inner
    return content


def _unwrapped(state: Mapping[str, Any], where: str) -> dict[str, Any]:
    return _by_name(state, lambda name: ".".join(part for part in name.split(".") if part not in _WRAPPERS), where)


def _backbone(state: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], WeightsLayout]:
    if any(name.startswith("embeddings.patch_embed.") for name in state):
        return dict(state), "own"
    layout: WeightsLayout = "official" if "patch_embed.proj.weight" in state else "transformers"
    found = convert(state, where)
    if (registers := found.get("embeddings.register_tokens")) is not None and not registers.numel():
        del found["embeddings.register_tokens"]  # of a Dinov2WithRegisters model that has none
    return found, layout


def _all_renamed(state: Mapping[str, Tensor], rules: list[tuple[str, str]], where: str) -> dict[str, Tensor]:
    return _by_name(state, lambda name: _renamed(name, rules), where)


def _by_name(state: Mapping[str, T], new: Callable[[str], str], where: str) -> dict[str, T]:
    """``state`` under new names, of which no two are equal."""
    found: dict[str, T] = {}
    before: dict[str, str] = {}
    for name, value in state.items():
        renamed = new(str(name))
        if renamed in found:
            raise VitrailError(f"{where}: {before[renamed]} and {name} are the same weights twice; remove one of them")
        found[renamed], before[renamed] = value, str(name)
    return found


def _renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
