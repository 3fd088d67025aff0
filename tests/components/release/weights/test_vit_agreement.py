"""The ViT against Hugging Face's, on random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from components.errors import VitrailError
from components.learning.vit import VisionTransformer, ViTConfig
from components.release.weights.names import convert
from components.release.weights.shapes import infer_config, load_strict


def theirs(kind: str, swiglu: bool = False, image_size: int = 224) -> Any:
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    shape: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": image_size,
        "patch_size": 14,
        "use_swiglu_ffn": swiglu,
    }
    if kind == "registers":
        model: Any = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=4, **shape))
    else:
        model = Dinov2Model(Dinov2Config(**shape))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # LayerScale, norms and biases away from their start, so that each is seen to work
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.mean() > 0.5) * 1.0)
    return model.eval()


def ours(model: Any, interpolation: Any = None) -> VisionTransformer:
    state = convert(model.state_dict())
    vit = VisionTransformer(infer_config(state, heads=3, interpolation=interpolation))
    load_strict(vit, state, "random weights")
    return vit.eval()


@pytest.mark.parametrize("size", [(224, 224), (252, 252), (98, 98), (140, 238)], ids=str)
@pytest.mark.parametrize("kind", ["plain", "registers", "registers-swiglu", "plain-swiglu"])
@torch.no_grad()
def test_features_are_hugging_faces(kind: str, size: tuple[int, int]) -> None:
    reference = theirs(kind.split("-")[0], kind.endswith("swiglu"))
    vit = ours(reference, "plain" if kind.startswith("plain") else None)
    registers = vit.config.registers
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = reference(images).last_hidden_state
    found = vit(images)
    whole = torch.cat([found.cls[:, None], found.registers, found.patches], dim=1)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
    assert found.registers.shape[1] == registers == (4 if kind.startswith("registers") else 0)


@torch.no_grad()
def test_masked_patches_are_hugging_faces() -> None:
    reference = theirs("registers")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 256, generator=torch.Generator().manual_seed(1)) < 0.4
    expected = reference(images, bool_masked_pos=mask).last_hidden_state
    found = ours(reference)(images, mask)
    torch.testing.assert_close(found.cls, expected[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.patches, expected[:, 5:], atol=1e-5, rtol=1e-5)
    unmasked = ours(reference)(images)
    assert not torch.allclose(found.cls, unmasked.cls, atol=1e-3)  # the mask did something


@torch.no_grad()
def test_intermediate_layers_are_hugging_faces_with_and_without_norm() -> None:
    reference = theirs("plain").double()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden = reference(images, output_hidden_states=True).hidden_states  # the embeddings, then every block
    vit = ours(reference).double()
    load_strict(vit, convert(reference.state_dict()), "random weights")
    bare = vit.intermediate(images, [0, 2], norm=False)
    normed = vit.intermediate(images, 2)
    torch.testing.assert_close(bare[0].patches, hidden[1][:, 1:], atol=1e-10, rtol=0)
    torch.testing.assert_close(bare[1].cls, hidden[3][:, 0], atol=1e-10, rtol=0)
    torch.testing.assert_close(normed[0].cls, reference.layernorm(hidden[2])[:, 0], atol=1e-10, rtol=0)
    torch.testing.assert_close(normed[1].cls, vit(images).cls)
    for wrong in (0, 4, [2, 1], [3], []):
        with pytest.raises(VitrailError, match=r"blocks .*: give rising numbers of 0 to 2"):
            vit.intermediate(images, wrong)


def official_names(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Our names as Meta's files spell them, blocks in chunks as ViT-g's."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("embeddings.patch_embed.", "patch_embed.proj.").replace("embeddings.", "")
        if name.startswith("blocks."):
            number = int(name.split(".")[1])
            name = name.replace(f"blocks.{number}.", f"blocks.{number // (depth // 2)}.{number}.", 1)
        renamed[name] = tensor
    return renamed


def test_official_names_come_back_to_ours() -> None:
    config = ViTConfig(image_size=28, patch_size=14, embed_dim=64, depth=4, heads=1, registers=4, ffn="swiglu")
    state = VisionTransformer(config).state_dict()
    back = convert(official_names(state, 4))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert infer_config(back) == config.model_copy(update={"interpolation": "size"})


def test_register_weights_are_refused_by_a_model_without() -> None:
    """Loaded loosely they cost the reporters of the original's issue 505 half of their accuracy."""
    state = convert(theirs("registers").state_dict())
    without = infer_config(state, heads=3).model_copy(update={"registers": 0})
    with pytest.raises(VitrailError, match=r"file: .*1 unexpected \(embeddings\.register_tokens\)"):
        load_strict(VisionTransformer(without), state, "file")
    with pytest.raises(VitrailError, match="not those of a DINOv2 vision transformer"):
        infer_config({"conv1.weight": torch.zeros(1)})
