"""Weights go out and are the same network for others: Hugging Face, the official layout, onnxruntime, torch.export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.errors import VitrailError
from components.learning.export import StartedFrom
from components.release.run import main
from components.release.weights import graphs
from components.release.weights.exportable import ExportableBackbone, OnnxBackbone
from components.release.weights.load import load_model
from components.release.weights.model_card import CardFacts, export_safetensors
from components.release.weights.writers import export_official, export_transformers
from tests.components.release.small_models import same, small_model

SIZES = [(56, 56), (70, 42), (28, 112)]


def images(size: tuple[int, int], samples: int = 2) -> torch.Tensor:
    return torch.randn(samples, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("how", ["offset", "size", "plain"])
@pytest.mark.parametrize("form", [ExportableBackbone, OnnxBackbone])
@torch.no_grad()
def test_the_graph_form_gives_the_same_tokens(form: type[ExportableBackbone], how: str, size: tuple[int, int]) -> None:
    backbone = small_model(registers=2 if how == "size" else 0, interpolation=how).backbone
    expected, (cls, patches) = backbone(images(size)), form(backbone)(images(size))
    torch.testing.assert_close(cls, expected.cls, atol=1e-5, rtol=0)
    torch.testing.assert_close(patches, expected.patches, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [{"ffn": "swiglu"}, {"layerscale_init": None}, {"qkv_bias": False}, {"heads": 4, "mlp_ratio": 3.0}],
    ids=str,
)
@torch.no_grad()
def test_blocks_of_onnxs_operators_are_the_models_blocks(changes: dict[str, Any]) -> None:
    backbone = small_model(**changes).backbone
    expected, (cls, patches) = backbone(images((56, 56))), OnnxBackbone(backbone)(images((56, 56)))
    torch.testing.assert_close(cls, expected.cls, atol=1e-5, rtol=0)
    torch.testing.assert_close(patches, expected.patches, atol=1e-5, rtol=0)


def test_onnx_runs_at_any_batch_and_size(tmp_path: Path) -> None:
    import onnxruntime

    model = small_model(registers=2, interpolation="size")
    graphs.export_onnx(model, tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["images"]  # no mask
    assert session.get_modelmeta().custom_metadata_map["patch_size"] == "14"
    for size, samples in zip(SIZES, (1, 2, 5), strict=True):
        cls, patches = session.run(None, {"images": images(size, samples).numpy()})
        with torch.no_grad():
            expected = model.backbone(images(size, samples))
        np.testing.assert_allclose(cls, expected.cls.numpy(), atol=1e-5)
        np.testing.assert_allclose(patches, expected.patches.numpy(), atol=1e-5)


def test_an_exported_program_runs_at_any_batch_and_size(tmp_path: Path) -> None:
    model = small_model()
    graphs.export_program(model, tmp_path / "m.pt2")
    program: Any = torch.export.load(tmp_path / "m.pt2").module()
    for size, samples in zip(SIZES, (1, 2, 5), strict=True):
        with torch.no_grad():
            cls, _ = program(images(size, samples))
            torch.testing.assert_close(cls, model.backbone(images(size, samples)).cls, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_weights_that_are_not_kept_are_free_before_the_file_is_checked(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, check = small_model(), graphs._compare

    def checked(*arguments: Any) -> None:
        assert not any(weights.numel() for weights in model.backbone.parameters())
        check(*arguments)

    monkeypatch.setattr(graphs, "_compare", checked)
    write = graphs.export_onnx if form == "onnx" else graphs.export_program
    write(model, tmp_path / "m.pt2", keep=False)
    assert (tmp_path / "m.pt2").is_file()
    with pytest.raises(VitrailError, match=r"names end in \.pt2"):
        graphs.export_program(small_model(), tmp_path / "m")


def test_a_graph_that_differs_is_not_let_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_graph", lambda model: ExportableBackbone(small_model(registers=1).backbone).eval())
    with pytest.raises(VitrailError, match="nothing is written"):
        graphs.export_program(small_model(), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize(("how", "registers"), [("offset", 0), ("size", 0), ("size", 4), ("plain", 0)])
def test_hugging_face_opens_the_folder_with_equal_features(
    how: str, registers: int, swiglu: bool, tmp_path: Path
) -> None:
    from transformers import AutoModel

    model = small_model(registers=registers, interpolation=how, ffn="swiglu" if swiglu else "mlp")
    said = export_transformers(model, tmp_path / "hf")
    theirs = AutoModel.from_pretrained(tmp_path / "hf").eval()
    for size in SIZES if how != "offset" else SIZES[:1]:
        found = theirs(images(size)).last_hidden_state
        with torch.no_grad():
            expected = model.backbone(images(size))
        torch.testing.assert_close(found[:, 0], expected.cls, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[:, 1 + registers :], expected.patches, atol=1e-5, rtol=0)
    assert ("at 56 x 56 px" in said) == (how == "offset")
    back = load_model(tmp_path / "hf")
    same(back.backbone, model.backbone)
    assert back.card.mean == model.card.mean


def test_hugging_face_features_are_equal_at_the_size_that_is_asked_for(tmp_path: Path) -> None:
    from transformers import AutoModel

    model = small_model()
    assert "at 84 x 84 px" in export_transformers(model, tmp_path / "hf", 84)
    theirs = AutoModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        expected, found = model.backbone(images((84, 84))), theirs(images((84, 84))).last_hidden_state
    torch.testing.assert_close(found[:, 0], expected.cls, atol=1e-5, rtol=0)
    with pytest.raises(VitrailError, match="no multiple of the patch"):
        export_transformers(model, tmp_path / "hf", 85)


def test_a_model_without_layerscale_and_bias_is_opened_too(tmp_path: Path) -> None:
    from transformers import AutoModel

    model = small_model(layerscale_init=None, qkv_bias=False)
    export_transformers(model, tmp_path / "hf")
    found = AutoModel.from_pretrained(tmp_path / "hf").eval()(images((56, 56))).last_hidden_state
    with torch.no_grad():
        torch.testing.assert_close(found[:, 0], model.backbone(images((56, 56))).cls, atol=1e-5, rtol=0)


@pytest.mark.parametrize("with_heads", [False, True])
def test_the_official_layout_comes_back(with_heads: bool, tmp_path: Path) -> None:
    model = small_model(with_heads=with_heads, registers=4, interpolation="size")
    export_official(model, tmp_path / "w.pth")
    content = torch.load(tmp_path / "w.pth", weights_only=True)
    assert "backbone.patch_embed.proj.weight" in content["teacher"] if with_heads else "pos_embed" in content
    back = load_model(tmp_path / "w.pth")
    same(back.backbone, model.backbone)
    assert (back.dino_head is not None) == with_heads


def test_the_model_card_says_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "benchmark.json").write_text(json.dumps({"elpv": {"knn": 0.71, "k": 10}}))
    (tmp_path / "gone.json").write_text(json.dumps({"models": [[str(tmp_path / "here"), "trained on it"]]}))
    (tmp_path / "other.json").write_text(json.dumps({"models": []}))
    facts = CardFacts(
        "apache-2.0",
        tmp_path / "benchmark.json",
        str(tmp_path / "here"),
        (tmp_path / "gone.json", tmp_path / "other.json"),
    )
    model = small_model(with_heads=True)
    trained = {"commit": "c0ffee", "init": StartedFrom(source="data/models/vits14", sha256={})}
    export_safetensors(replace(model, card=model.card.model_copy(update=trained)), tmp_path / "out", facts)
    text = (tmp_path / "out/README.md").read_text()
    for said in (
        "license: apache-2.0", "| data digest | d |", "| fingerprint of params and data | p |", '"knn": 0.71',
        "| code that trained it | c0ffee |", "| started from | data/models/vits14 |",
        "`gone.json` took down images that this model was trained on", "`other.json` took down no image",
    ):  # fmt: skip
        assert said in text, said
    assert "{sha256}" not in text
    same(load_model(tmp_path / "out").backbone, small_model().backbone)
    with pytest.raises(VitrailError, match="no such report"):
        export_safetensors(small_model(), tmp_path / "none", CardFacts(scores=tmp_path / "missing.json"))
    assert not (tmp_path / "none").exists()


def test_the_command_writes_each_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_official(small_model(), tmp_path / "w.pth")
    for form, name in (("safetensors", "folder"), ("huggingface", "hf"), ("official", "again.pth")):
        given = ["export", "--model", str(tmp_path / "w.pth"), "--to", form, "--out", str(tmp_path / name)]
        assert main(given) == 0
        assert f"{form} of imported vit64x2_14" in capsys.readouterr().out
        same(load_model(tmp_path / name).backbone, small_model().backbone)
