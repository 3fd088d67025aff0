"""Small networks with random weights, and their files as others lay them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.learning.export import ModelCard
from components.learning.heads import HeadConfig, ProjectionHead
from components.learning.vit import VisionTransformer, ViTConfig
from components.release.weights.load import LoadedModel

DIM, DEPTH, PATCH = 64, 2, 14  # 64 channels: one attention head, as the released models have it


def randomized(module: nn.Module, seed: int = 1) -> Any:
    """``module`` with every weight away from its start, so that each is seen to work."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + float("norm" in name))
    return module.eval()


def small_vit(**changes: Any) -> VisionTransformer:
    """A network of width 64 and depth 2 for 56 px."""
    shape: dict[str, Any] = {"image_size": 56, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "heads": 1}
    vit: VisionTransformer = randomized(VisionTransformer(ViTConfig(**shape | changes)))
    return vit


def small_model(with_heads: bool = False, **changes: Any) -> LoadedModel:
    """A loaded model around :func:`small_vit`."""
    vit = small_vit(**changes)
    config = HeadConfig(prototypes=10, hidden=8, bottleneck=4)
    heads = [randomized(ProjectionHead(DIM, config), seed) for seed in (2, 3)] if with_heads else [None, None]
    card = ModelCard(
        kind="pretrain", preset="small", vit=vit.config, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), image_size=56,
        dino_head=config if with_heads else None, ibot_head=config if with_heads else None, step=1,
        params_fingerprint="p", data_digest="d",
    )  # fmt: skip
    return LoadedModel(vit, card, *heads)


def official_names(state: dict[str, Tensor], chunks: int = 1) -> dict[str, Tensor]:
    """Our names as Meta's files spell them; blocks in ``chunks`` where there are more than one, as under FSDP."""
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("embeddings.patch_embed.", "patch_embed.proj.").replace("embeddings.", "")
        if chunks > 1 and name.startswith("blocks."):
            number = int(name.split(".")[1])
            name = name.replace(f"blocks.{number}.", f"blocks.{number // (depth // chunks)}.{number}.", 1)
        renamed[name] = tensor
    return renamed


def training_checkpoint(model: LoadedModel, chunks: int = 2) -> dict[str, Any]:
    """What the authors' training code saves of its teacher: backbone in chunks, heads by weight_norm's names."""
    state = {f"backbone.{k}": v for k, v in official_names(dict(model.backbone.state_dict()), chunks).items()}
    for part, head in (("dino_head", model.dino_head), ("ibot_head", model.ibot_head)):
        if head is not None:
            state |= {f"{part}.{name}": tensor for name, tensor in head.state_dict().items()}
    return {"teacher": state}


def transformers_model(registers: bool, swiglu: bool = False) -> Any:
    """A random model of Hugging Face's."""
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    shape: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
        "use_swiglu_ffn": swiglu,
    }  # fmt: skip
    if registers:
        return randomized(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=4, **shape)))
    return randomized(Dinov2Model(Dinov2Config(**shape)))


def same(found: VisionTransformer, expected: VisionTransformer, size: tuple[int, int] = (56, 56)) -> None:
    """Both give equal tokens."""
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(found(images), expected(images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def saved(content: Any, path: Path) -> Path:
    """``content`` as a PyTorch file."""
    torch.save(content, path)
    return path
