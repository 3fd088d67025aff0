"""Which parameter learns how fast, and what decays."""

from __future__ import annotations

import pytest
from torch import nn

from components.learning.heads import HeadConfig, ProjectionHead
from components.learning.param_groups import layer_of, param_groups, weight_decay_multiplier
from components.learning.vit import VisionTransformer, ViTConfig


def student() -> nn.Module:
    vit = VisionTransformer(
        ViTConfig(image_size=16, patch_size=8, embed_dim=16, depth=3, heads=2, registers=2, ffn="swiglu")
    )
    head = ProjectionHead(16, HeadConfig(prototypes=8, hidden=8, bottleneck=4))
    return nn.ModuleDict({"backbone": vit, "dino_head": head})


def multipliers(module: nn.Module, **settings: float) -> dict[str, tuple[float, float, bool]]:
    found = {}
    for group in param_groups(module, **settings):
        for name in group["names"]:
            found[name] = (group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"])
    return found


def test_layers_count_from_the_embeddings() -> None:
    module = student()
    for name, _ in module.named_parameters():
        expected = 0 if ".embeddings." in name else int(name.split(".")[2]) + 1 if ".blocks." in name else 4
        assert layer_of(name, depth=3) == expected, name


def test_learning_rates_decay_layer_by_layer() -> None:
    found = multipliers(student(), layer_decay=0.9)
    assert found["backbone.embeddings.pos_embed"][0] == pytest.approx(0.9**4)
    assert found["backbone.embeddings.cls_token"][0] == pytest.approx(0.9**4)
    assert found["backbone.embeddings.patch_embed.weight"][0] == pytest.approx(0.2 * 0.9**4)
    assert found["backbone.embeddings.patch_embed.bias"][0] == pytest.approx(0.2 * 0.9**4)
    assert found["backbone.blocks.0.attn.qkv.weight"][0] == pytest.approx(0.9**3)
    assert found["backbone.blocks.2.mlp.w3.weight"][0] == pytest.approx(0.9)
    assert found["backbone.norm.weight"][0] == 1.0
    assert found["dino_head.mlp.0.weight"][0] == 1.0


def test_what_decays() -> None:
    found = {name: wd for name, (_, wd, _) in multipliers(student()).items()}
    undecayed = {name for name, wd in found.items() if wd == 0}
    assert undecayed == {n for n in found if n.endswith(".bias") or "norm" in n or "gamma" in n}
    # against the common belief these do decay in the released training
    for token in ("pos_embed", "cls_token", "mask_token", "register_tokens"):
        assert found[f"backbone.embeddings.{token}"] == 1.0
    assert found["dino_head.last_layer.weight_g"] == found["dino_head.last_layer.weight_v"] == 1.0
    assert weight_decay_multiplier("bias") == 0.0


def test_last_layer_is_marked() -> None:
    marked = {name for name, (_, _, last) in multipliers(student()).items() if last}
    assert marked == {"dino_head.last_layer.weight_v", "dino_head.last_layer.weight_g"}


def test_equal_multipliers_share_a_group_and_nothing_is_lost() -> None:
    module = student()
    groups = param_groups(module, layer_decay=1.0)
    keys = [(g["lr_multiplier"], g["wd_multiplier"], g["is_last_layer"]) for g in groups]
    assert len(set(keys)) == len(keys) == 5
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in module.parameters())
    assert [n for g in groups for n in g["names"]] == [n for g in param_groups(student(), 1.0) for n in g["names"]]
    for parameter in module["backbone"].embeddings.parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    assert len(param_groups(module)) == 3


def test_a_module_without_blocks() -> None:
    head = ProjectionHead(16, HeadConfig(prototypes=8, hidden=8, bottleneck=4))
    assert {g["lr_multiplier"] for g in param_groups(head, 0.5)} == {1.0}
