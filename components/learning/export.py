"""A finished model as files anybody can read: ``model.json`` and whole fp32 safetensors under the modules' names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from components.errors import VitrailError
from components.learning.heads import HeadConfig, ProjectionHead
from components.learning.vit import VisionTransformer, ViTConfig
from components.params import Factor, Share, Strict
from components.storage import atomic_dir

CARD, BACKBONE, HEADS = "model.json", "backbone.safetensors", "heads.safetensors"


class StartedFrom(Strict):
    """The model whose weights a run went on from."""

    source: str  # as the run's parameters named it
    sha256: dict[str, str]  # of its weights, by file
    data_digests: tuple[str, ...] = ()  # training sets that it and those before it saw; an imported one names none


class ModelCard(Strict):
    """``model.json``: what the weights beside it are and came from."""

    kind: Literal["pretrain", "continue", "distill", "imported"]
    preset: str  # of an imported model its architecture, such as vits14_reg4
    vit: ViTConfig
    mean: tuple[Share, Share, Share]  # of the training's normalisation, RGB in 0 ... 1
    std: tuple[Factor, Factor, Factor]
    image_size: int = Field(ge=1, le=8192)  # pixels of a side of the global crops
    dino_head: HeadConfig | None = None
    ibot_head: HeadConfig | None = None  # None: shared with the DINO head
    step: int = Field(ge=0, le=10**12)  # iterations trained
    params_fingerprint: str  # "" of an imported model, as data_digest
    data_digest: str
    commit: str | None = None  # of the code that trained it, "-dirty" behind it where files differed; None: not known
    init: StartedFrom | None = None  # None: random weights, or not trained here
    teacher: str | None = None  # preset of the frozen teacher, of a distilled model
    model_id: str | None = None  # of MLflow's LoggedModel
    source: str | None = None  # of an imported model: the file, folder or address it came from
    source_sha256: str | None = None  # of that file; of a folder, of its weights' files one after the other


def export_model(
    out: Path,
    backbone: Mapping[str, Tensor],
    card: ModelCard,
    heads: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder ``out`` at once: ``model.json``, ``backbone.safetensors``, ``heads.safetensors``.

    Args:
        out: replaced as a whole.
        backbone: the averaged teacher's state by the names of :class:`VisionTransformer`.
        card: see :class:`ModelCard`.
        heads: states below ``dino_head.`` and ``ibot_head.``.
        extra: more JSON files by name, such as ``curve.json``.
    """
    from safetensors.torch import save_file

    with atomic_dir(out) as folder:
        parts = {BACKBONE: backbone, HEADS: heads or {}}
        for name, state in parts.items():
            if state:
                save_file(_plain(state), folder / name)
                (folder / name).chmod(0o644)  # safetensors gives files to their owner alone
        for name, content in (extra or {}).items():
            (folder / name).write_text(json.dumps(content, indent=1) + "\n")
        (folder / CARD).write_text(card.model_dump_json(indent=1) + "\n")


def load_card(folder: Path) -> ModelCard:
    """Read ``folder/model.json``.

    Raises:
        VitrailError: there is none, or it is not a model card of this version.
    """
    path = Path(folder) / CARD
    try:
        return ModelCard.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise VitrailError(f"{path}: no exported model here; run the pretrain or distill stage first") from None
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise VitrailError(f"{path}: not a model card: {where}: {first['msg']}; export the model again") from None


def load_backbone(
    folder: Path, device: torch.device | str = "cpu", card: ModelCard | None = None
) -> tuple[VisionTransformer, ModelCard]:
    """The exported backbone in eval mode, fp32, with its card. Names and shapes must fit exactly.

    Raises:
        VitrailError: files are missing, damaged, or do not fit the card.
    """
    folder = Path(folder)
    card = card or load_card(folder)
    with torch.device("meta"):
        model = VisionTransformer(card.vit)
    _load_strict(model, _read(folder / BACKBONE), folder / BACKBONE)
    return model.to(device).eval(), card


def load_heads(folder: Path) -> tuple[ProjectionHead, ProjectionHead | None]:
    """The exported DINO and iBOT heads, fp32 in eval mode; None for an iBOT head that is the DINO head.

    Raises:
        VitrailError: files are missing, damaged, or do not fit the card.
    """
    folder = Path(folder)
    card = load_card(folder)
    if card.dino_head is None:
        raise VitrailError(f"{folder / CARD}: this model was exported without heads; a distillation teacher needs them")
    state = _read(folder / HEADS)
    found: list[ProjectionHead | None] = []
    for name, config in (("dino_head", card.dino_head), ("ibot_head", card.ibot_head)):
        if config is None:
            found.append(None)
            continue
        with torch.device("meta"):
            head = ProjectionHead(card.vit.embed_dim, config)
        part = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        _load_strict(head, part, folder / HEADS)
        found.append(head.eval())
    assert found[0] is not None
    return found[0], found[1]


def weights_digest(model: nn.Module) -> str:
    """SHA-256 (hex) over the names and bytes of all weights: the same whichever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().float().cpu().contiguous() for name, value in state.items()}


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise VitrailError(f"{path}: not there; run the stage that exports the model again") from None
    except (SafetensorError, OSError) as fault:
        raise VitrailError(f"{path}: damaged ({fault}); run the stage that exports the model again") from None


def _load_strict(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    faults = [f"{name} missing" for name in own.keys() - state.keys()]
    faults += [f"{name} unknown" for name in state.keys() - own.keys()]
    faults += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if state[name].shape != own[name].shape
    ]
    if faults:
        shown = ", ".join(sorted(faults)[:4])
        raise VitrailError(f"{path}: the weights do not fit model.json: {shown} ({len(faults)} differences)")
    # The file's own pages become the weights: memory is not taken twice, and nothing is drawn to be overwritten.
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
