"""The configuration that weights fit, and the check that they fit one. Nothing is ever loaded in part.

Files loaded loosely, such as those of a model with registers into one without, give features that look fine and are
not: kNN fell from 83.8 to 43 % for one reporter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from components.errors import VitrailError
from components.learning.blocks import swiglu_hidden
from components.learning.embed import Interpolation
from components.learning.heads import HeadConfig, ProjectionHead
from components.learning.vit import ARCHITECTURES, VisionTransformer, ViTConfig
from components.params import parse_params
from components.release.weights.names import listed

HEAD_DIM = 64  # channels an attention head, of all released models


def infer_config(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    interpolation: Interpolation | None = None,
    where: str = "weights",
) -> ViTConfig:
    """The configuration that a backbone's weights, in this project's names, fit.

    Args:
        state: from :func:`components.release.weights.names.weights_of`.
        heads: attention heads, which no shape tells. None: those of the architecture of that width and depth, else 64
            channels a head, as all released models.
        interpolation: "size" with registers and "offset" without when None, as the released models.
        where: begins messages.

    Raises:
        VitrailError: the weights are of no model of this kind.
    """
    stem = {name: tensor for name, tensor in state.items() if name.startswith("embeddings.patch_embed.convs.")}
    if stem:
        raise VitrailError(
            f"{where}: weights with a convolutional stem, such as {listed(list(stem))}; no shapes tell the rest "
            "of such a model: give the folder that has its model.json"
        )
    patch, positions = state.get("embeddings.patch_embed.weight"), state.get("embeddings.pos_embed")
    ffn = state.get("blocks.0.mlp.fc1.weight", state.get("blocks.0.mlp.w12.weight"))
    if (
        patch is None
        or positions is None
        or ffn is None
        or patch.dim() != 4
        or positions.dim() != 3
        or ffn.dim() != 2
        or not patch.numel()
    ):
        shown = f"weights with names such as {listed(list(state))}" if state else "no weights"
        raise VitrailError(f"{where}: {shown}: not those of a DINOv2 vision transformer")
    dim, channels, patch_size, _ = patch.shape
    side = math.isqrt(max(0, positions.shape[1] - 1))
    if side * side != positions.shape[1] - 1 or not side:
        raise VitrailError(f"{where}: {positions.shape[1] - 1} position embeddings, which make no square grid")
    numbers = [name.split(".")[1] for name in state if name.startswith("blocks.")]
    depth = 1 + max(int(number) for number in numbers if number.isdigit())
    registers = state.get("embeddings.register_tokens")
    if registers is not None and registers.dim() != 3:
        raise VitrailError(f"{where}: register tokens of shape {tuple(registers.shape)}; [1, R, D] is wanted")
    swiglu = "blocks.0.mlp.w12.weight" in state
    content = {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "in_channels": channels,
        "embed_dim": dim,
        "depth": depth,
        "heads": _heads(dim, depth, where) if heads is None else heads,
        "ffn": "swiglu" if swiglu else "mlp",
        "mlp_ratio": _swiglu_ratio(dim, ffn.shape[0] // 2) if swiglu else ffn.shape[0] / dim,
        "registers": 0 if registers is None else registers.shape[1],
        "layerscale_init": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "interpolation": interpolation or ("offset" if registers is None else "size"),
    }
    return parse_params(content, ViTConfig, where)


def infer_head(state: Mapping[str, Tensor], where: str) -> HeadConfig:
    """The configuration that a projection head's weights fit.

    Raises:
        VitrailError: they are no head of this kind.
    """
    numbers = [n.split(".")[1] for n in state if n.startswith("mlp.") and n.endswith(".weight")]
    layers = sorted(int(number) for number in numbers if number.isdigit())
    prototypes = state.get("last_layer.weight_v")
    if not layers or prototypes is None or prototypes.dim() != 2:
        raise VitrailError(f"{where}: a head with names such as {listed(list(state))}: not one of DINOv2")
    first, last = state[f"mlp.{layers[0]}.weight"], state[f"mlp.{layers[-1]}.weight"]
    if first.dim() != 2 or last.dim() != 2:
        raise VitrailError(f"{where}: a head whose layers are no matrices: not one of DINOv2")
    hidden = first.shape[0] if len(layers) > 1 else 2048  # of one layer there is none
    content = {"prototypes": prototypes.shape[0], "hidden": hidden, "bottleneck": last.shape[0], "layers": len(layers)}
    return parse_params(content, HeadConfig, where)


def build_backbone(config: ViTConfig, state: Mapping[str, Tensor], where: str) -> VisionTransformer:
    """A network in eval mode that holds ``state`` itself in fp32: memory is not taken twice.

    Raises:
        VitrailError: names or shapes differ; lists the first of each, and the configuration that would fit. Or numbers
            are NaN or infinite; names the tensors.
    """
    with torch.device("meta"):
        model = VisionTransformer(config)
    _fill(model, state, where, lambda: _would_fit(config, state))
    return model.eval()


def build_head(dim: int, config: HeadConfig, state: Mapping[str, Tensor], where: str) -> ProjectionHead:
    """As :func:`build_backbone`, of a head on features of ``dim`` channels."""
    with torch.device("meta"):
        head = ProjectionHead(dim, config)
    _fill(head, state, where, lambda: f"the head would fit {_told(config, infer_head(state, where))}")
    return head.eval()


def load_strict(model: VisionTransformer, state: Mapping[str, Tensor], where: str) -> None:
    """Copy a backbone's weights, in this project's names, into ``model``.

    Raises:
        VitrailError: as :func:`build_backbone`.
    """
    if faults := differences(model, state):
        raise VitrailError(f"{where}: weights do not fit this model: {faults}; {_would_fit(model.config, state)}")
    model.load_state_dict(dict(state))


def differences(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What of ``state`` is missing, unexpected or of another shape for ``model``; empty where all fits."""
    own = model.state_dict()
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": shapes,
    }
    return "; ".join(f"{len(names)} {what} ({listed(names)})" for what, names in faults.items() if names)


def _fill(model: nn.Module, state: Mapping[str, Tensor], where: str, advice: Callable[[], str]) -> None:
    if faults := differences(model, state):
        raise VitrailError(f"{where}: weights do not fit this model: {faults}; {advice()}")
    if odd := [n for n, t in state.items() if not t.is_floating_point() or t.layout != torch.strided or t.is_meta]:
        raise VitrailError(
            f"{where}: no dense floating-point numbers: {listed(odd)}; convert them first, or copy it again"
        )
    whole = {name: tensor.detach().float() for name, tensor in state.items()}
    if broken := [name for name, tensor in whole.items() if not _finite(tensor)]:
        raise VitrailError(
            f"{where}: NaN or infinite numbers in {listed(broken)}; the file is damaged or its training diverged: take "
            "another copy, or an earlier checkpoint"
        )
    model.load_state_dict(whole, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers of ``tensor`` are; no second tensor of its size is made."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def _would_fit(config: ViTConfig, state: Mapping[str, Tensor]) -> str:
    """The part of a configuration that ``state`` needs and ``config`` does not have."""
    try:
        fitting = infer_config(state, config.heads, config.interpolation)
    except VitrailError:
        if any(name.startswith("embeddings.patch_embed.convs.") for name in state):
            return "they are of a model with stem: convolutional"
        return "they are of no vision transformer of this kind"
    if changes := _told(config, fitting):
        return f"they would fit with {changes}"
    return "names or shapes contradict each other: the file is damaged, or of another architecture"


def _told(ours: ViTConfig | HeadConfig, theirs: ViTConfig | HeadConfig) -> str:
    before, after = ours.model_dump(), theirs.model_dump()
    told = [f"{key} {value} (not {before[key]})" for key, value in after.items() if value != before[key]]
    return ", ".join(each for each in told if not each.startswith(("drop_path", "init_std")))


def _heads(dim: int, depth: int, where: str) -> int:
    for known in ARCHITECTURES.values():
        if (known["embed_dim"], known["depth"]) == (dim, depth):
            return int(known["heads"])
    if dim % HEAD_DIM:
        raise VitrailError(f"{where}: how many attention heads {dim} channels make, no shape tells; give --heads")
    return int(dim // HEAD_DIM)


def _swiglu_ratio(dim: int, hidden: int) -> float:
    """The ratio whose SwiGLU has ``hidden`` channels: 4, or the least that gives them."""
    return 4.0 if swiglu_hidden(dim) == hidden else (hidden * 3 + 1) / 2 / dim
