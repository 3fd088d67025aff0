"""A model named by value, ready to use: our exports, the released DINOv2 files, Hugging Face's folders, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from components.errors import VitrailError
from components.executor import worker_number
from components.learning.export import BACKBONE, CARD, HEADS, ModelCard, load_card
from components.learning.heads import ProjectionHead
from components.learning.vit import ARCHITECTURES, VisionTransformer, ViTConfig
from components.params import parse_params
from components.release.weights.fetch import CACHE, file_sha256, local_copy
from components.release.weights.names import Weights, weights_of
from components.release.weights.read import CheckpointContent, read, transformers_config
from components.release.weights.shapes import build_backbone, build_head, infer_config, infer_head

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: all released models' normalisation
EVALUATED_AT = 224  # px of a side, in the published tables; the released position tables are of 518


@dataclass(frozen=True)
class LoadedModel:
    """A network with what is known about it."""

    backbone: VisionTransformer  # fp32, eval mode
    card: ModelCard
    dino_head: ProjectionHead | None = None  # None: it came without heads
    ibot_head: ProjectionHead | None = None  # None: without, or shared with the DINO head


def load_model(
    source: str | Path,
    device: torch.device | str = "cpu",
    *,
    heads: int | None = None,
    with_heads: bool = True,
    cache: Path = CACHE,
) -> LoadedModel:
    """The model that ``source`` names.

    Args:
        source: a file or folder: a local path, ``s3://bucket/key``, a URL with its digest behind it
            (``https://...#sha256=HEX``), or a registered model (``models:/name@alias``). Our exports, Meta's released
            files, training checkpoints with heads, Hugging Face's Dinov2 and Dinov2WithRegisters folders, safetensors
            in the names of any of them.
        device: of the returned modules: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        heads: attention heads, where neither a config nor the known architectures tell.
        with_heads: load projection heads where there are some.
        cache: folder that keeps pinned downloads.

    Raises:
        VitrailError: not there, damaged, of another architecture, or names or shapes do not fit; never loaded in part.
    """
    if isinstance(device, str):
        device = usable_device(device)
    with local_copy(source, cache) as path:
        folder = path.parent if path.name == CARD else path
        if (folder / CARD).is_file():
            model = _own(folder, with_heads)
        else:
            model = _foreign(path, str(source), heads, with_heads)
    if heads is not None and model.card.vit.heads != heads:
        raise VitrailError(f"{source}: has {model.card.vit.heads} attention heads by its own config, not {heads}")
    for module in (model.backbone, model.dino_head, model.ibot_head):
        if module is not None:
            module.to(device)
    return model


def usable_device(named: str) -> str:
    """``named``; of ``auto`` the GPU where there is one.

    Raises:
        VitrailError: no such device here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if named == "auto":
        return "cuda" if count else "cpu"
    kind, _, number = named.partition(":")
    if named != "cpu" and (kind != "cuda" or (":" in named and not number.isdigit())):
        raise VitrailError(f"device {named!r}: auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= count:
        raise VitrailError(
            f"device {named!r}: torch finds {count} CUDA devices on this machine; auto takes what is there"
        )
    return named


def worker_device(named: str, part: int) -> str:
    """:func:`usable_device` where a part of a work runs: a pool's workers keep to a GPU each, others take them in turn.

    Raises:
        VitrailError: no such device here.
    """
    device, number = usable_device(named), worker_number()
    if device != "cuda":
        return device
    return f"cuda:{(part if number is None else number) % torch.cuda.device_count()}"


def check_weights(source: str | Path, known: Mapping[str, str], what: str) -> None:
    """Nothing when the backbone that ``source`` names is that of ``known`` (:func:`weights_digests`).

    Raises:
        VitrailError: it is another: its features mean something else to what was made of the first one's.
    """
    both = (known, weights_digests(source))
    before, now = ([each[BACKBONE]] if BACKBONE in each else sorted(each.values()) for each in both)
    if before != now:
        raise VitrailError(f"{source}: not the weights that {what} was made with; name that model, or make it again")


def weights_digests(source: str | Path) -> dict[str, str]:
    """SHA-256 (hex) of the weights that ``source`` names, by file: what a run that starts from them depends on.

    Raises:
        VitrailError: as :func:`load_model`, where it is not there.
    """
    with local_copy(source) as path:
        folder = path.parent if path.name == CARD else path
        if (folder / CARD).is_file():
            load_card(folder)
            return {name: file_sha256(folder / name) for name in (BACKBONE, HEADS) if (folder / name).is_file()}
        files = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")]) if path.is_dir() else [path]
        if not files:
            raise VitrailError(f"{source}: no exported model here; run the stage that makes it, or name another")
        return {file.name if path.is_dir() else "weights": file_sha256(file) for file in files}


def _own(folder: Path, with_heads: bool) -> LoadedModel:
    card = load_card(folder)
    backbone = build_backbone(card.vit, read(folder / BACKBONE).content, str(folder / BACKBONE))
    if not with_heads or card.dino_head is None:
        return LoadedModel(backbone, card)
    parts: dict[str, dict[str, torch.Tensor]] = {"dino_head": {}, "ibot_head": {}}
    wanted = {"dino_head": card.dino_head} | ({"ibot_head": card.ibot_head} if card.ibot_head is not None else {})
    for key, tensor in read(folder / HEADS).content.items():
        part, _, name = key.partition(".")
        if part not in wanted:
            raise VitrailError(f"{folder / HEADS}: {key} is of no head that {CARD} names; copy the folder again")
        parts[part][name] = tensor
    heads = {
        part: build_head(card.vit.embed_dim, config, parts[part], f"{folder / HEADS}: {part}")
        for part, config in wanted.items()
    }
    return LoadedModel(backbone, card, heads["dino_head"], heads.get("ibot_head"))


def _foreign(path: Path, source: str, heads: int | None, with_heads: bool) -> LoadedModel:
    found = read(path)
    weights = weights_of(found.content, source)
    if found.config is not None:
        vit = transformers_config(found.config, f"{source}/config.json")
    else:
        vit = infer_config(weights.backbone, heads, "plain" if _of_transformers(weights) else None, source)
    backbone = build_backbone(vit, weights.backbone, source)
    configs = [infer_head(state, source) if state else None for state in (weights.dino_head, weights.ibot_head)]
    card = _card(vit, found, source).model_copy(update={"dino_head": configs[0], "ibot_head": configs[1]})
    if not with_heads or configs[0] is None:
        return LoadedModel(backbone, card.model_copy(update={"dino_head": None, "ibot_head": None}))
    built = [
        None if config is None else build_head(vit.embed_dim, config, state, source)
        for config, state in zip(configs, (weights.dino_head, weights.ibot_head), strict=True)
    ]
    return LoadedModel(backbone, card, *built)


def _of_transformers(weights: Weights) -> bool:
    return weights.layout == "transformers" and "embeddings.register_tokens" not in weights.backbone


def _card(vit: ViTConfig, found: CheckpointContent, source: str) -> ModelCard:
    images: dict[str, Any] = found.images or {}
    crop = images.get("crop_size") or {}
    side = crop.get("height") if isinstance(crop, dict) else crop
    side = EVALUATED_AT if side is None else side
    if not isinstance(side, int) or side < 1:
        raise VitrailError(f"{source}/preprocessor_config.json: crop_size {side!r}: a number of pixels is wanted")
    size = min(side, vit.image_size)
    content = {
        "kind": "imported", "preset": architecture_name(vit), "vit": vit, "mean": images.get("image_mean", MEAN),
        "std": images.get("image_std", STD), "image_size": max(1, size // vit.patch_size) * vit.patch_size, "step": 0,
        "params_fingerprint": "", "data_digest": "", "source": source, "source_sha256": file_sha256(*found.files),
    }  # fmt: skip
    return parse_params(content, ModelCard, f"{source}/preprocessor_config.json")


def architecture_name(vit: ViTConfig) -> str:
    """``vits14`` or ``vitl14_reg4``; width and depth where the architecture has no name: ``vit32x2_14``."""
    shape = (vit.embed_dim, vit.depth)
    known = [name for name, each in ARCHITECTURES.items() if (each["embed_dim"], each["depth"]) == shape]
    name = f"{known[0]}{vit.patch_size}" if known else f"vit{shape[0]}x{shape[1]}_{vit.patch_size}"
    return name + (f"_reg{vit.registers}" if vit.registers else "")
