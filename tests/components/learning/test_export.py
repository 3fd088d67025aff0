from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from components.errors import VitrailError
from components.learning.heads import HeadConfig
from components.learning.objective import HeadsParams, build_network
from components.learning.vit import ViTConfig
from components.training.checkpoints.checkpoint import ModelCard, export_model, load_backbone, load_heads

VIT = ViTConfig(image_size=16, patch_size=4, embed_dim=12, depth=1, heads=2)
HEADS = HeadsParams(
    dino=HeadConfig(prototypes=9, hidden=8, bottleneck=4), ibot=HeadConfig(prototypes=7, hidden=8, bottleneck=4)
)


def exported(folder: Path, heads: HeadsParams = HEADS) -> torch.nn.Module:
    network = build_network(VIT, heads, seed=3)
    card = ModelCard(
        kind="pretrain", preset="t", vit=VIT, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), image_size=16,
        dino_head=heads.dino, ibot_head=heads.ibot, step=1, params_fingerprint="p", data_digest="d",
    )  # fmt: skip
    state = network.state_dict()
    backbone = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    export_model(
        folder, backbone, card, {k: v for k, v in state.items() if not k.startswith("backbone.")}, {"curve.json": []}
    )
    return network


def test_round_trip_is_exact(tmp_path: Path) -> None:
    network = exported(tmp_path / "m").eval()
    backbone, card = load_backbone(tmp_path / "m")
    dino, ibot = load_heads(tmp_path / "m")
    assert ibot is not None
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = backbone(image), network.backbone(image)
        assert torch.equal(found.cls, expected.cls)
        assert torch.equal(dino(found.cls), network.dino_head(expected.cls))
        assert torch.equal(ibot(found.patches), network.ibot_head(expected.patches))
    assert (card.preset, card.vit, backbone.training) == ("t", VIT, False)
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "model.json", "backbone.safetensors", "heads.safetensors", "curve.json",
    }  # fmt: skip


def test_a_shared_head_is_none(tmp_path: Path) -> None:
    exported(tmp_path / "m", HeadsParams(dino=HEADS.dino))
    assert load_heads(tmp_path / "m")[1] is None


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(VitrailError, match="no exported model here"):
        load_backbone(tmp_path)
    folder = tmp_path / "m"
    exported(folder)
    card = json.loads((folder / "model.json").read_text())
    card["vit"]["registers"] = 4
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(
        VitrailError, match=r"do not fit model.json: embeddings.register_tokens missing \(1 differences\)"
    ):
        load_backbone(folder)
    card["vit"] |= {"registers": 0, "embed_dim": 24}
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(VitrailError, match=r"blocks.0.attn.proj.bias is \(12,\), not \(24,\)"):
        load_backbone(folder)
    (folder / "model.json").write_text("{}")
    with pytest.raises(VitrailError, match=r"model.json: not a model card: kind: Field required"):
        load_backbone(folder)
    exported(folder)
    data = (folder / "backbone.safetensors").read_bytes()
    (folder / "backbone.safetensors").write_bytes(data[:-8])
    with pytest.raises(VitrailError, match=r"backbone.safetensors: damaged"):
        load_backbone(folder)
