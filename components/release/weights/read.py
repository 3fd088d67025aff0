"""What a local file or folder of weights holds: the tensors, and what is written beside them about their shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import VitrailError
from components.learning.vit import ViTConfig
from components.params import parse_params
from components.release.weights.names import listed

TRANSFORMERS = {"dinov2": "plain", "dinov2_with_registers": "size"}  # model_type -> how it resamples positions


class CheckpointContent(NamedTuple):
    """The content of a checkpoint, not yet renamed."""

    content: Any  # what :func:`components.release.weights.names.weights_of` takes
    files: list[Path]  # that held it
    config: dict[str, Any] | None = None  # Hugging Face's config.json
    images: dict[str, Any] | None = None  # Hugging Face's preprocessor_config.json


def read(path: Path) -> CheckpointContent:
    """Read a ``.safetensors`` or PyTorch file, or a folder with ``config.json`` and weights beside it.

    Raises:
        VitrailError: damaged, of another architecture, or a pickle that holds more than tensors.
    """
    return _folder(path) if path.is_dir() else CheckpointContent(_file(path), [path])


def transformers_config(config: Mapping[str, Any], where: str) -> ViTConfig:
    """Hugging Face's ``config.json`` of a Dinov2 model as a configuration of ours.

    Raises:
        VitrailError: of another architecture, or with a part that the released models do not have.
    """
    kind = config.get("model_type")
    if kind not in TRANSFORMERS:
        raise VitrailError(f"{where}: a model of type {kind!r}; {' and '.join(TRANSFORMERS)} can be imported")
    expected = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise VitrailError(f"{where}: {key} {config[key]!r}; DINOv2 has {value!r}")
    content = {
        "image_size": config.get("image_size", 224),
        "patch_size": config.get("patch_size", 14 if kind == "dinov2" else 16),
        "in_channels": config.get("num_channels", 3),
        "embed_dim": config.get("hidden_size", 768),
        "depth": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "ffn": "swiglu" if config.get("use_swiglu_ffn") else "mlp",
        "mlp_ratio": config.get("mlp_ratio", 4),
        "registers": config.get("num_register_tokens", 4) if kind == "dinov2_with_registers" else 0,
        "qkv_bias": config.get("qkv_bias", True),
        "interpolation": TRANSFORMERS[kind],
    }
    return parse_params(content, ViTConfig, where)


def _folder(path: Path) -> CheckpointContent:
    config, images = _json(path / "config.json"), _json(path / "preprocessor_config.json")
    if config is None:
        files = sorted(each.name for each in path.iterdir() if each.suffix in (".safetensors", ".pth", ".pt", ".bin"))
        hint = f"; to load {listed(files)}, name the file" if files else ""
        raise VitrailError(
            f"{path}: neither model.json (our exports) nor config.json (Hugging Face) in this folder{hint}"
        )
    transformers_config(config, str(path / "config.json"))  # before gigabytes are read
    names = _parts(path / "model.safetensors.index.json") or ["model.safetensors"]
    if not (path / names[0]).is_file() and (path / "pytorch_model.bin").is_file():
        names = ["pytorch_model.bin"]
    content: dict[str, Any] = {}
    for name in names:
        if "/" in name or not (path / name).is_file():
            raise VitrailError(f"{path / name}: weights of this folder are missing; copy the folder again")
        part = _file(path / name)
        if not isinstance(part, dict):
            raise VitrailError(f"{path / name}: holds a {type(part).__name__}; a state dict is wanted")
        if twice := sorted(content.keys() & part.keys()):
            raise VitrailError(f"{path / name}: {listed(twice)} also in another file of this folder; copy it again")
        content |= part
    return CheckpointContent(content, [path / name for name in names], config, images)


def _parts(index: Path) -> list[str]:
    """The files that a folder's index names; none without an index."""
    content = _json(index)
    if content is None:
        return []
    named = content.get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(each, str) for each in named.values()):
        raise VitrailError(f"{index}: no weight_map from names to files; copy the folder again")
    return sorted(set(named.values()))


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as fault:
        raise VitrailError(f"{path}: not valid JSON ({fault}); copy the folder again") from None
    if not isinstance(content, dict):
        raise VitrailError(f"{path}: a JSON object is wanted")
    return content


def _file(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as fault:
        raise VitrailError(f"{path}: cannot be read: {fault.strerror}; copy the model again, or make it anew") from None
    if head == b"version https://":
        raise VitrailError(f"{path}: a pointer of Git LFS, not the weights; run git lfs pull where it comes from")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _safetensors(path)
    return _pickle(path)


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError) as fault:
        raise VitrailError(f"{path}: no whole safetensors file ({fault}); copy it again") from None


def _pickle(path: Path) -> Any:
    """A PyTorch file of tensors alone, mapped into memory where its format allows."""
    import pickle
    import zipfile

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as fault:
        said = " ".join(str(fault).split())
        name = said.partition("GLOBAL ")[2].partition(" ")[0].rstrip(".,")
        if name:
            raise VitrailError(
                f"{path}: holds a pickled object ({name}) beside tensors, which could run code and is not loaded; "
                "save the state dict alone, or convert it to safetensors where you trust it"
            ) from None
        raise VitrailError(
            f"{path}: no PyTorch or safetensors file of tensors alone, or a damaged one; copy it again, or save the "
            "state dict with torch.save"
        ) from None
    except (RuntimeError, ValueError, EOFError, KeyError, IndexError, AttributeError, TypeError) as fault:
        said = " ".join(str(fault).split())[:100]
        raise VitrailError(f"{path}: no PyTorch or safetensors file, or cut short ({said}); copy it again") from None
