"""A loaded model in the layouts of others: Hugging Face's folder, Meta's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.errors import VitrailError
from components.learning.embed import interpolate_positions
from components.release.weights.export import head_states
from components.release.weights.load import LoadedModel
from components.release.weights.names import official
from components.release.weights.outputs import check_replaceable
from components.storage import atomic_dir, atomic_file

_BLOCK = [
    ("attn.proj.", "attention.output.dense."),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
    ("mlp.w12.", "mlp.weights_in."),
    ("mlp.w3.", "mlp.weights_out."),
]
_EMBEDDINGS = [("patch_embed.", "patch_embeddings.projection."), ("pos_embed", "position_embeddings")]


def export_transformers(model: LoadedModel, out: Path, image_size: int | None = None) -> str:
    """Write the folder ``out`` that ``transformers.AutoModel.from_pretrained`` opens; returns where features are equal.

    Hugging Face resamples position embeddings in its own ways. Where the model does it otherwise, features are equal
    at the size of the table alone: ``image_size`` resamples the table to another size first.

    Raises:
        VitrailError: the model has a shape that Hugging Face's has not.
    """
    from safetensors.torch import save_file

    check_replaceable(out, "config.json")
    vit = model.card.vit
    state = {name: tensor.detach().float().cpu() for name, tensor in model.backbone.state_dict().items()}
    size = vit.image_size
    if image_size is not None:
        if image_size % vit.patch_size or image_size <= 0:
            raise VitrailError(f"--image-size {image_size} is no multiple of the patch of {vit.patch_size} px")
        table, size = state["embeddings.pos_embed"], image_size
        grid = (size // vit.patch_size, size // vit.patch_size)
        patches = interpolate_positions(table[:, 1:], grid, vit.interpolation)
        state["embeddings.pos_embed"] = torch.cat([table[:, :1], patches], 1)
    _check_stem(vit.stem)
    ratio = vit.mlp_ratio
    if ratio != int(ratio):
        raise VitrailError(f"mlp_ratio {ratio}: Hugging Face's models have whole ones; export safetensors instead")
    registers = vit.registers > 0 or vit.interpolation == "size"
    names = {name: tensor for key, value in state.items() for name, tensor in _transformers(key, value).items()}
    if registers and not vit.registers:
        names["embeddings.register_tokens"] = torch.zeros(1, 0, vit.embed_dim)
    for number in range(vit.depth if vit.layerscale_init is None else 0):  # theirs always has LayerScale
        for each in (1, 2):
            names[f"encoder.layer.{number}.layer_scale{each}.lambda1"] = torch.ones(vit.embed_dim)
    config: dict[str, Any] = {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "hidden_size": vit.embed_dim, "num_hidden_layers": vit.depth, "num_attention_heads": vit.heads,
        "mlp_ratio": int(ratio), "image_size": size, "patch_size": vit.patch_size, "num_channels": vit.in_channels,
        "qkv_bias": vit.qkv_bias, "use_swiglu_ffn": vit.ffn == "swiglu", "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        "torch_dtype": "float32",
    }  # fmt: skip
    if registers:
        config["num_register_tokens"] = vit.registers
    side = model.card.image_size
    images = {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": model.card.mean, "image_std": model.card.std,
        "do_convert_rgb": True,
    }  # fmt: skip
    with atomic_dir(out) as folder:
        save_file({k: v.contiguous() for k, v in names.items()}, folder / "model.safetensors", {"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=1) + "\n")
    if vit.interpolation == ("size" if registers else "plain"):
        return "features are equal at every size"
    return (
        f"features are equal at {size} x {size} px; at other sizes Hugging Face resamples position embeddings "
        "otherwise (--image-size chooses another size)"
    )


def export_official(model: LoadedModel, out: Path) -> None:
    """Write the file ``out`` as Meta's: the backbone's state dict, or with heads a checkpoint of the teacher.

    Raises:
        VitrailError: the model has a shape that Meta's have not.
    """
    _check_stem(model.card.vit.stem)
    state: dict[str, Any] = official({k: v.detach().cpu() for k, v in model.backbone.state_dict().items()})
    if heads := head_states(model):
        state = {"teacher": {f"backbone.{name}": tensor for name, tensor in state.items()} | heads}
    with atomic_file(out) as file:
        torch.save(state, file)


def _check_stem(stem: str) -> None:
    if stem != "patch":
        raise VitrailError(
            f"vit.stem: {stem}: the layouts of Meta and Hugging Face know linear patches alone; export it to "
            "safetensors, ONNX or torch.export instead"
        )


def _transformers(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of ours by the names of Hugging Face's released folders; query, key and value apart."""
    if name.startswith("embeddings."):
        for ours, theirs in _EMBEDDINGS:
            name = name.replace(ours, theirs)
        return {name: tensor}
    if name.startswith("norm."):
        return {f"layernorm.{name.removeprefix('norm.')}": tensor}
    name = name.replace("blocks.", "encoder.layer.", 1)
    if ".attn.qkv." in name:
        parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return {name.replace("attn.qkv", f"attention.attention.{part}"): value for part, value in parts}
    for ours, theirs in _BLOCK:
        name = name.replace(ours, theirs)
    return {name: tensor}
