"""Weights of others come in whole, and are the same network; what does not fit is refused and told."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from components.errors import VitrailError, run_cli
from components.learning.export import load_backbone, load_heads
from components.release.run import main
from components.release.weights.export import save_model
from components.release.weights.fetch import file_sha256
from components.release.weights.load import load_model
from tests.components.release.small_models import (
    official_names,
    same,
    saved,
    small_model,
    small_vit,
    training_checkpoint,
    transformers_model,
)


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"registers": 4}, {"ffn": "swiglu"}, {"registers": 4, "ffn": "swiglu"}], ids=str
)
def test_official_files_are_taken_in_with_their_shape(changes: dict[str, object], chunks: int, tmp_path: Path) -> None:
    vit = small_vit(interpolation="size" if "registers" in changes else "offset", **changes)
    path = saved(official_names(dict(vit.state_dict()), chunks), tmp_path / "w.pth")
    found = load_model(path)
    assert found.card.vit == vit.config
    assert (found.card.kind, found.card.source_sha256) == ("imported", file_sha256(path))
    same(found.backbone, vit)
    same(found.backbone, vit, (42, 84))
    assert not found.backbone.training
    assert all(parameter.requires_grad for parameter in found.backbone.parameters())


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "name"),
    [(384, 12, 6, "vits14"), (768, 12, 12, "vitb14"), (1024, 24, 16, "vitl14"), (1536, 40, 24, "vitg14")],
)
@pytest.mark.parametrize("registers", [0, 4])
def test_the_released_sizes_are_known(dim: int, depth: int, heads: int, name: str, registers: int) -> None:
    from components.learning.vit import VisionTransformer, ViTConfig
    from components.release.weights.load import architecture_name
    from components.release.weights.names import weights_of
    from components.release.weights.shapes import differences, infer_config

    config = ViTConfig(
        image_size=518, patch_size=14, embed_dim=dim, depth=depth, heads=heads, registers=registers,
        ffn="swiglu" if name == "vitg14" else "mlp", interpolation="size" if registers else "offset",
    )  # fmt: skip
    with torch.device("meta"):
        model = VisionTransformer(config)
    state = weights_of(official_names(dict(model.state_dict()), 4), "file").backbone
    assert infer_config(state) == config
    assert not differences(model, state)
    assert architecture_name(config) == name + ("_reg4" if registers else "")


def test_a_training_checkpoint_brings_its_heads(tmp_path: Path) -> None:
    model = small_model(with_heads=True, registers=4, interpolation="size")
    content = training_checkpoint(model)
    for name, wrapped in {
        "plain": content,
        "fsdp": {"teacher": {f"_fsdp_wrapped_module.{k}": v for k, v in content["teacher"].items()}},
        "ddp": {"teacher": {f"module.{k}": v for k, v in content["teacher"].items()}},
        "whole": {"model": {f"teacher.{k}": v for k, v in content["teacher"].items()} | {"student.x": torch.ones(1)}},
    }.items():
        found = load_model(saved(wrapped, tmp_path / f"{name}.pth"))
        same(found.backbone, model.backbone)
        assert found.dino_head is not None
        assert found.ibot_head is not None
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
        assert model.dino_head is not None
        torch.testing.assert_close(found.dino_head(x), model.dino_head(x))
        assert found.card.dino_head == model.card.dino_head


def test_weight_norm_by_parametrisation_is_read(tmp_path: Path) -> None:
    model = small_model(with_heads=True)
    content = training_checkpoint(model)
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    state = {k: v for k, v in content["teacher"].items() if not k.startswith("ibot_head.")}
    for old, new in names.items():
        state[f"dino_head.last_layer.{new}"] = state.pop(f"dino_head.last_layer.{old}")
    found = load_model(saved({"teacher": state}, tmp_path / "new.pth"))
    assert found.dino_head is not None
    assert found.ibot_head is None  # shared
    assert model.dino_head is not None
    assert torch.equal(found.dino_head.last_layer.weight_v, model.dino_head.last_layer.weight_v)


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("swiglu", [False, True])
def test_hugging_face_folders_give_the_same_features(registers: bool, swiglu: bool, tmp_path: Path) -> None:
    reference = transformers_model(registers, swiglu)
    reference.save_pretrained(tmp_path / "hf")
    found = load_model(tmp_path / "hf")
    assert found.card.vit.heads == 4  # of config.json: no shape tells
    for size in ((56, 56), (70, 98)):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected, ours = reference(images).last_hidden_state, found.backbone(images)
        whole = torch.cat([ours.cls[:, None], ours.registers, ours.patches], 1)
        torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)


def test_sharded_hugging_face_folders_are_read(tmp_path: Path) -> None:
    reference = transformers_model(False)
    reference.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    shards = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    assert len(shards) > 1
    load_model(tmp_path / "hf")
    shards[0].unlink()
    with pytest.raises(VitrailError, match="weights of this folder are missing"):
        load_model(tmp_path / "hf")


def test_safetensors_in_any_names_are_read(tmp_path: Path) -> None:
    vit = small_vit()
    save_file(dict(vit.state_dict()), tmp_path / "own.safetensors")
    save_file(official_names(dict(vit.state_dict())), tmp_path / "official.safetensors")
    same(load_model(tmp_path / "own.safetensors").backbone, vit)
    same(load_model(tmp_path / "official.safetensors").backbone, vit)


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in official_names(dict(small_vit().state_dict())).items()}
    found = load_model(saved(state, tmp_path / "half.pth"))
    assert {p.dtype for p in found.backbone.parameters()} == {torch.float32}


def test_imported_models_are_exports_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model(with_heads=True)
    path = saved(training_checkpoint(model), tmp_path / "teacher.pth")
    assert main(["import", str(path), "--out", str(tmp_path / "m")]) == 0
    said = capsys.readouterr().out
    assert "imported vit64x2_14" in said
    assert "projection heads: DINO 10 prototypes, iBOT 10 prototypes" in said
    backbone, card = load_backbone(tmp_path / "m")
    same(backbone, model.backbone)
    assert load_heads(tmp_path / "m")[1] is not None
    assert card.source == str(path)
    again = load_model(tmp_path / "m" / "model.json")
    same(again.backbone, model.backbone)


def test_what_does_not_fit_is_listed_with_the_configuration_that_would(tmp_path: Path) -> None:
    transformers_model(True).save_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    config |= {"model_type": "dinov2"}
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    with pytest.raises(
        VitrailError, match=r"1 unexpected \(embeddings.register_tokens\); they would fit with registers 4 \(not 0\)"
    ):
        load_model(tmp_path / "hf")
    config |= {"model_type": "dinov2_with_registers", "hidden_size": 64}
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    with pytest.raises(VitrailError, match=r"of another shape \(.*would fit with embed_dim 32 \(not 64\)"):
        load_model(tmp_path / "hf")


@pytest.mark.parametrize("drop", ["blocks.1.norm2.bias", "norm.weight", "cls_token"])
def test_a_truncated_state_is_refused(drop: str, tmp_path: Path) -> None:
    state = official_names(dict(small_vit().state_dict()))
    del state[drop]
    with pytest.raises(VitrailError, match=rf"1 missing \(.*{drop}\)"):
        load_model(saved(state, tmp_path / "w.pth"))


def test_foreign_files_are_told_in_one_line(tmp_path: Path) -> None:
    whole = official_names(dict(small_vit().state_dict()))
    cases = {
        "foreign": ({"conv1.weight": torch.zeros(1)}, "not those of a DINOv2 vision transformer"),
        "extra": (whole | {"head.weight": torch.zeros(1)}, r"1 unexpected \(head.weight\)"),
        "list": ([1, 2], "holds a list"),
        "numbers": ({"epoch": 3, "x": "y"}, "epoch, x are no tensors"),
        "loose": ({"teacher": {"backbone.a": torch.ones(1), "koleo.b": torch.ones(1)}}, "weights beside backbone"),
        "oblong": (whole | {"pos_embed": torch.zeros(1, 7, 64)}, "make no square grid"),
        "odd": ({k: v[..., :50] if k == "pos_embed" else v for k, v in whole.items()}, "of another shape"),
        "code": ({"args": Namespace(a=1), **whole}, r"holds a pickled object \(argparse.Namespace\)"),
    }
    for name, (content, message) in cases.items():
        with pytest.raises(VitrailError, match=message) as caught:
            load_model(saved(content, tmp_path / f"{name}.pth"))
        assert "\n" not in str(caught.value)


def test_damaged_files_are_told_in_one_line(tmp_path: Path) -> None:
    good = saved(official_names(dict(small_vit().state_dict())), tmp_path / "w.pth").read_bytes()
    save_file(dict(small_vit().state_dict()), tmp_path / "w.safetensors")
    tensors = (tmp_path / "w.safetensors").read_bytes()
    cases = {
        "cut.pth": good[: len(good) // 2],
        "empty.pth": b"",
        "text.pth": b"not a checkpoint at all",
        "cut.safetensors": tensors[: len(tensors) // 2],
        "empty.safetensors": b"",
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(VitrailError) as caught:
            load_model(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def odd_states() -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    """Files with the right names and other content, and what is said of each."""
    good = official_names(dict(small_vit(registers=2).state_dict()))
    token = torch.zeros(64)
    return {
        "whole numbers": (good | {"norm.bias": token.long()}, r"no dense floating-point numbers: norm\.bias"),
        "one position": (good | {"pos_embed": torch.zeros(1, 1, 64)}, "no square grid"),
        "no position": (good | {"pos_embed": torch.zeros(1, 0, 64)}, "no square grid"),
        "flat registers": (good | {"register_tokens": token}, r"register tokens of shape \(64,\)"),
        "no channels": (good | {"patch_embed.proj.weight": torch.zeros(0, 3, 14, 14)}, "not those of a DINOv2"),
        "a strange block": (good | {"blocks.x.y": token}, r"1 unexpected \(blocks\.x\.y\)"),
        "a head of words": (
            {f"backbone.{name}": tensor for name, tensor in good.items()} | {"dino_head.mlp.x.weight": token},
            "a head with names such as mlp",
        ),
    }


@pytest.mark.parametrize("case", odd_states())
def test_right_names_with_odd_content_are_told_in_one_line(case: str, tmp_path: Path) -> None:
    state, said = odd_states()[case]
    with pytest.raises(VitrailError, match=said) as fault:
        load_model(saved(state, tmp_path / "w.pth"))
    assert "\n" not in str(fault.value)


def test_parts_that_do_not_join_are_told(tmp_path: Path) -> None:
    state = dict(transformers_model(registers=False).state_dict())
    query = next(name for name in state if "layer.0." in name and name.endswith(("query.weight", "q_proj.weight")))
    save_file(state | {query: torch.zeros(32, 31)}, tmp_path / "w.safetensors")
    with pytest.raises(VitrailError, match=r"unexpected \(.*attn\.k"):
        load_model(tmp_path / "w.safetensors", heads=4)


def test_what_contradicts_the_models_own_config_is_told(tmp_path: Path) -> None:
    save_model(small_model(), tmp_path / "m")
    with pytest.raises(VitrailError, match="has 1 attention heads by its own config, not 2"):
        load_model(tmp_path / "m", heads=2)
    from components.release.weights.writers import export_transformers

    export_transformers(small_model(), tmp_path / "hf")
    for content, said in (
        ({"crop_size": "x"}, "crop_size 'x'"),
        ({"crop_size": {"height": 0}}, "crop_size 0"),
        ({"image_mean": [0.5]}, "mean"),
        ({"image_std": [0, 0, 0]}, "std"),
    ):
        (tmp_path / "hf/preprocessor_config.json").write_text(json.dumps(content))
        with pytest.raises(VitrailError, match=rf"preprocessor_config\.json: .*{said}"):
            load_model(tmp_path / "hf")


@pytest.mark.parametrize(("device", "said"), [("banana", "auto, cpu, cuda or cuda:N"), ("cuda:99", "finds . CUDA")])
def test_devices_that_are_not_there_are_told(device: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(VitrailError, match=f"device '{device}': .*{said}"):
        load_model(tmp_path / "none", device)


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    save_model(small_model(), tmp_path / "m")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.png").write_bytes(b"x")
    model, photos = str(tmp_path / "m"), str(tmp_path / "photos")
    for command in (
        ["import", model], ["embed", "--model", model, "--images", photos],
        ["export", "--model", model, "--to", "huggingface"], ["export", "--model", model, "--to", "safetensors"],
        ["classify", "fit", "--model", model, "--images", photos],
    ):  # fmt: skip
        with pytest.raises(VitrailError, match="photos: a folder with other content"):
            main([*command, "--out", photos])
    assert (tmp_path / "photos/one.png").read_bytes() == b"x"
    assert main(["import", model, "--out", model]) == 0  # its own earlier output is
    same(load_model(model).backbone, small_model().backbone)


def test_folders_of_other_architectures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(VitrailError, match="a model of type 'vit'; dinov2 and dinov2_with_registers can be imported"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(VitrailError, match="a JSON object is wanted"):
        load_model(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VitrailError, match="neither model"):
        load_model(tmp_path / "empty")


def test_heads_that_no_shape_tells_are_asked_for(tmp_path: Path) -> None:
    state = official_names(dict(small_vit(embed_dim=48, heads=3).state_dict()))
    path = saved(state, tmp_path / "w.pth")
    with pytest.raises(VitrailError, match="give --heads"):
        load_model(path)
    assert load_model(path, heads=3).card.vit.heads == 3
    with pytest.raises(VitrailError, match="no multiple of heads 5"):
        load_model(path, heads=5)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on loopback over a folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_urls_are_pinned_and_kept(served: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = served
    path = saved(official_names(dict(small_vit().state_dict())), folder / "w.pth")
    digest, cache = file_sha256(path), tmp_path / "cache"
    with pytest.raises(VitrailError, match="a URL needs its digest behind it"):
        load_model(f"{address}/w.pth", cache=cache)
    with pytest.raises(VitrailError, match="its sha256 is"):
        load_model(f"{address}/w.pth#sha256={'0' * 64}", cache=cache)
    with pytest.raises(VitrailError, match="cannot be fetched"):
        load_model(f"{address}/none.pth#sha256={digest}", cache=cache)
    same(load_model(f"{address}/w.pth#sha256={digest}", cache=cache).backbone, small_vit())
    path.unlink()
    same(load_model(f"{address}/w.pth#sha256={digest}", cache=cache).backbone, small_vit())


def test_models_come_from_s3(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.storage import StorageParams, open_store

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.chdir(tmp_path)
    store = open_store(StorageParams(root="s3://vitrail-test/models", endpoint_url=s3_endpoint))
    model = small_model(with_heads=True)
    save_model(model, tmp_path / "m")
    for file in (tmp_path / "m").iterdir():
        store.put_file(f"ours/{file.name}", file)
    store.put_file("w.pth", saved(training_checkpoint(model), tmp_path / "w.pth"))
    same(load_model("s3://vitrail-test/models/ours").backbone, model.backbone)
    same(load_model("s3://vitrail-test/models/w.pth").backbone, model.backbone)
    with pytest.raises(VitrailError, match="no such object, and none below it"):
        load_model("s3://vitrail-test/models/none")


def test_the_command_tells_faults_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(main, ["import", str(tmp_path / "none"), "--out", str(tmp_path / "m")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such file or folder of a model\n"
    assert not (tmp_path / "m").exists()


def test_benchmark_contenders_are_named_by_value(tmp_path: Path) -> None:
    from components.benchmark.features.contenders import BaselineParams, gather
    from components.evaluation.features.extract import FeatureParams

    path = saved(official_names(dict(small_vit().state_dict())), tmp_path / "w.pth")
    save_model(small_model(), tmp_path / "models/ours")
    found = gather([tmp_path / "models", str(path)], FeatureParams(), BaselineParams(), "cpu")
    names = [contender.name for contender in found if contender.kind == "checkpoint"]
    assert names == ["pretrain small", "imported vit64x2_14"]
