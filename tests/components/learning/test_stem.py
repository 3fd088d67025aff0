"""The convolutional stem: its function, its count of weights, its place in a model that is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from components.errors import VitrailError
from components.learning.export import ModelCard, export_model
from components.learning.param_groups import learning_rate_multiplier
from components.learning.stem import ConvolutionalStem, stem_channels
from components.learning.vit import VisionTransformer, ViTConfig
from components.release.weights.exportable import ExportableBackbone
from components.release.weights.load import LoadedModel, load_model
from components.release.weights.writers import export_official, export_transformers
from components.training.costs.capability import count_backbone
from components.training.costs.memory import embedding_layers

CONFIG = ViTConfig(image_size=16, patch_size=4, embed_dim=32, depth=2, heads=2, stem="convolutional")


def trained(config: ViTConfig = CONFIG) -> VisionTransformer:
    made = VisionTransformer(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made.eval()


def card() -> ModelCard:
    fields: dict[str, Any] = {"kind": "pretrain", "preset": "small", "vit": CONFIG, "step": 1, "image_size": 16}
    return ModelCard(**fields, mean=(0.5,) * 3, std=(0.2,) * 3, params_fingerprint="p", data_digest="d")


def test_it_is_convolutions_of_stride_two_with_gelu_and_a_linear_map() -> None:
    stem = ConvolutionalStem(4, 3, 32)
    stem.init_weights(torch.Generator().manual_seed(1))
    assert stem_channels(4, 32) == [16, 32]
    layers = [layer for conv in stem.convs for layer in (conv, nn.GELU())]
    plain = nn.Sequential(*layers, nn.Conv2d(32, 32, 1))
    with torch.no_grad():
        plain[-1].weight.copy_(stem.out.weight[..., None, None])
        plain[-1].bias.copy_(stem.out.bias)
        images = torch.randn(2, 3, 16, 24)
        wanted = plain(images)
        assert wanted.shape == (2, 32, 4, 6)
        torch.testing.assert_close(stem.maps(images), wanted)
        torch.testing.assert_close(stem([images]), wanted.flatten(2).transpose(1, 2).reshape(-1, 32))


@pytest.mark.parametrize("patch", [2, 4, 16])
@pytest.mark.parametrize("stem", ["patch", "convolutional"])
def test_weights_and_products_are_counted(patch: int, stem: str) -> None:
    config = CONFIG.model_copy(update={"image_size": 32, "patch_size": patch, "stem": stem})
    made = VisionTransformer(config)
    assert count_backbone(config) == sum(p.numel() for p in made.parameters())
    seen: list[int] = []
    for layer in made.embeddings.patch_embed.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda m, _, out: seen.append(m.weight[0].numel() * out.numel()))
    made.embeddings.patch_embed([torch.zeros(1, 3, 32, 32)])
    products = sum(inputs * outputs * places for inputs, outputs, places in embedding_layers(config))
    if stem == "convolutional":
        assert sum(seen) == products * (32 // patch) ** 2
    else:
        assert products == 3 * patch**2 * 32


def test_a_patch_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stem: convolutional needs a patch_size of 2, 4, 8, 16, ..., not 14"):
        ViTConfig(image_size=28, patch_size=14, embed_dim=32, depth=1, heads=2, stem="convolutional")


def test_its_weights_learn_at_the_rate_of_a_patch_embedding() -> None:
    for name in ("convs.0.weight", "out.bias"):
        assert learning_rate_multiplier(f"backbone.embeddings.patch_embed.{name}", 2, 1.0, 0.2) == 0.2


def test_an_exported_model_comes_back_and_its_graph_is_equal_on_odd_sides_too(tmp_path: Path) -> None:
    made = trained()
    export_model(tmp_path / "model", made.state_dict(), card())
    found = load_model(str(tmp_path / "model")).backbone
    images = torch.randn(2, 3, 18, 23)
    with torch.no_grad():
        wanted = made(images[:, :, :16, :20])
        for cls, patches in (found(images[:, :, :16, :20])[::2], ExportableBackbone(made)(images)):
            np.testing.assert_allclose(cls, wanted.cls, atol=2e-5)
            np.testing.assert_allclose(patches, wanted.patches, atol=2e-5)


def test_layouts_that_have_no_such_stem_say_so(tmp_path: Path) -> None:
    model = LoadedModel(trained(), card(), None, None)
    for write in (export_official, export_transformers):
        with pytest.raises(VitrailError, match=r"vit\.stem: convolutional: the layouts of Meta and Hugging Face"):
            write(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_weights_without_their_card_say_that_it_is_wanted(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(trained().state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(VitrailError, match=r"convolutional stem.*give the folder that has its model.json"):
        load_model(str(tmp_path / "weights.safetensors"))
