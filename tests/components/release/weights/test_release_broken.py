"""Weights that are no numbers, are there twice, or do not fit the card beside them are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from components.errors import VitrailError
from components.release.weights.export import save_model
from components.release.weights.load import load_model
from tests.components.release.small_models import (
    official_names,
    saved,
    small_model,
    small_vit,
    training_checkpoint,
    transformers_model,
)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(value: float, tmp_path: Path) -> None:
    model = small_model(with_heads=True)
    assert model.ibot_head is not None
    with torch.no_grad():
        model.backbone.blocks[1].norm2.bias[3] = value
    content = training_checkpoint(model)
    save_model(model, tmp_path / "ours")
    for path in (saved(content, tmp_path / "w.pth"), tmp_path / "ours"):
        with pytest.raises(VitrailError, match=r"NaN or infinite numbers in blocks\.1\.norm2\.bias; ") as fault:
            load_model(path)
        assert "\n" not in str(fault.value)
    half = {name: tensor.half() for name, tensor in official_names(dict(model.backbone.state_dict())).items()}
    with pytest.raises(VitrailError, match=r"NaN or infinite numbers in blocks\.1\.norm2\.bias; "):
        load_model(saved(half, tmp_path / "half.pth"))
    with torch.no_grad():
        model.backbone.blocks[1].norm2.bias[3] = 0
        model.ibot_head.last_layer.weight_v[2, 1] = value
    save_model(model, tmp_path / "head")
    with pytest.raises(VitrailError, match=r"ibot_head: NaN or infinite numbers in last_layer\.weight_v; "):
        load_model(tmp_path / "head")


def test_weights_under_two_names_are_refused(tmp_path: Path) -> None:
    good = official_names(dict(small_vit().state_dict()))
    twice = {
        "module.norm.bias": r"norm\.bias and module\.norm\.bias",
        "blocks.0.1.norm1.bias": r"blocks\.1\.norm1\.bias and blocks\.0\.1\.norm1\.bias",
    }
    for name, said in twice.items():
        with pytest.raises(VitrailError, match=f"{said} are the same weights twice"):
            load_model(saved(good | {name: torch.zeros(64)}, tmp_path / "w.pth"))
    folder = tmp_path / "hf"
    transformers_model(False).save_pretrained(folder, max_shard_size="20KB")
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    shutil.copyfile(first, second)
    with pytest.raises(VitrailError, match="also in another file of this folder"):
        load_model(folder)


def test_an_export_that_its_card_does_not_fit_is_told_what_would(tmp_path: Path) -> None:
    save_model(small_model(with_heads=True, registers=2, interpolation="size"), tmp_path / "m")
    good = json.loads((tmp_path / "m/model.json").read_text())
    cases = [
        ({"vit": {"registers": 0}}, r"1 unexpected \(embeddings\.register_tokens\); they would fit with registers 2"),
        ({"vit": {"registers": 4}}, r"of another shape \(embeddings\.register_tokens .*registers 2 \(not 4\)"),
        ({"vit": {"depth": 3}}, r"14 missing \(blocks\.2.*would fit with depth 2 \(not 3\)"),
        ({"dino_head": {"prototypes": 9}}, r"dino_head: .*the head would fit prototypes 10 \(not 9\)"),
        ({"ibot_head": None}, r"heads\.safetensors: ibot_head\.\S+ is of no head that model\.json names"),
    ]
    for change, said in cases:
        card = dict(good)
        for key, value in change.items():
            card[key] = value if value is None else good[key] | value
        (tmp_path / "m/model.json").write_text(json.dumps(card))
        with pytest.raises(VitrailError, match=said):
            load_model(tmp_path / "m")
    (tmp_path / "m/model.json").write_text(json.dumps(good))
    (tmp_path / "m/heads.safetensors").unlink()
    with pytest.raises(VitrailError, match=r"heads\.safetensors: cannot be read: No such file"):
        load_model(tmp_path / "m")


def test_folders_without_the_weights_are_told(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(VitrailError, match=r"neither model\.json .* to load w\.pth, name the file"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    index = tmp_path / "model.safetensors.index.json"
    for content in ({}, {"weight_map": {}}, {"weight_map": {"a": 3}}, {"weight_map": "x"}):
        index.write_text(json.dumps(content))
        with pytest.raises(VitrailError, match=r"index\.json: no weight_map from names to files"):
            load_model(tmp_path)
    for name in ("../w.pth", "none.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(VitrailError, match="weights of this folder are missing"):
            load_model(tmp_path)
    index.unlink()
    saved([1], tmp_path / "pytorch_model.bin")
    with pytest.raises(VitrailError, match=r"pytorch_model\.bin: holds a list"):
        load_model(tmp_path)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (tmp_path / "model.safetensors").write_bytes(pointer)
    with pytest.raises(VitrailError, match=r"model\.safetensors: a pointer of Git LFS"):
        load_model(tmp_path)
