"""What a workspace reproduces, and that no value of it reaches a shell."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from components.errors import VitrailError
from components.params import load_params
from components.pipeline import PipelineParams, load_pipeline, with_stage
from components.training.params import TrainingParams

ROOT = Path(__file__).resolve().parents[2]


def stages() -> dict[str, dict[str, object]]:
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in content.items()}


def test_no_command_of_dvc_yaml_holds_a_value() -> None:
    for name, stage in stages().items():
        command = str(stage["cmd"])
        assert "${" not in command, f"{name}: a value in a command is read by a shell"
        assert "$" not in command.replace('"$DVC_STAGE"', "")


def test_a_stages_name_stands_for_its_paths() -> None:
    pretrain = with_stage(["run", "--stage", "pretrain@vitt", "--curated", "data/curate"], ROOT)
    assert pretrain == [
        *("run", "--params", "params/pretrain/vitt.yaml", "--out", "data/pretrain/vitt"),
        *("--report", "reports/pretrain-vitt.json", "--curated", "data/curate"),
    ]
    distill = with_stage(["run", "--stage", "../dvc.yaml:distill@vitxt"], ROOT)
    assert distill[-4:] == ["--report", "reports/distill-vitxt.json", "--teacher", "data/pretrain/vitt"]
    assert with_stage(["plan"], ROOT) == ["plan"]


def test_a_stage_that_goes_on_from_a_model_names_it(tmp_path: Path) -> None:
    (tmp_path / "params").mkdir()
    content = {"source": "x", "pretrain": ["vitt"], "continued": {"vitt": {"start": "data/my models/a"}}, "distill": {}}
    (tmp_path / "params/pipeline.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    continued = with_stage(["run", "--stage", "continue@vitt"], tmp_path)
    assert continued == [
        *("run", "--params", "params/continue/vitt.yaml", "--out", "data/continue/vitt"),
        *("--report", "reports/continue-vitt.json", "--set", 'init="data/my models/a"'),
        *("--scratch", "scratch/continue"),  # not that of pretrain@vitt
    ]
    params = load_params(ROOT / "params/continue/vitt.yaml", TrainingParams, [continued[8]])
    assert params.init == "data/my models/a"
    assert with_stage(["run", "--stage", "gain@vitt"], tmp_path) == [
        *("run", "--params", "params/benchmark.yaml", "--out", "data/gain/vitt"),
        *("--report", "reports/gain-vitt.json", "--checkpoints", "data/my models/a", "data/continue/vitt"),
    ]


@pytest.mark.parametrize(
    "start", ["https://h/x.pth", f"https://h/x.pth#sha256={'0' * 64}", "models:/vits@champion", "w.pth#sha256=0"]
)
def test_a_model_to_go_on_from_is_one_that_dvc_can_watch(start: str, tmp_path: Path) -> None:
    content = {"source": "x", "pretrain": ["a"], "continued": {"a": {"start": start}}, "distill": {}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(content))
    said = re.escape(f"vitrail import {shlex.quote(start)} --out data/models/NAME, and set start: data/models/NAME")
    with pytest.raises(VitrailError, match=said):
        load_params(tmp_path / "pipeline.yaml", PipelineParams)
    content["continued"] = {"a": {"start": "s3://bucket/models/a"}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(content))
    assert load_params(tmp_path / "pipeline.yaml", PipelineParams).continued["a"].start == "s3://bucket/models/a"


@pytest.mark.parametrize("stage", ["pretrain@vit", "distill@vitt", "", "vitt", "pretrain@vitt; ls"])
def test_a_stage_that_is_not_listed_is_named(stage: str) -> None:
    with pytest.raises(VitrailError, match="lists pretrain@vitt, distill@vitxt"):
        with_stage(["run", "--stage", stage], ROOT)


@pytest.mark.parametrize("source", ["a b", "a;b", "$(touch x)", "it's", 'say "so"', "`x`", "a\\b", "~/x", "ü ü", "*"])
def test_any_source_is_what_it_says(tmp_path: Path, source: str) -> None:
    (tmp_path / "params").mkdir()
    content = {"source": source, "pretrain": ["vitt"], "distill": {}}
    (tmp_path / "params/pipeline.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    assert load_pipeline(tmp_path).source == source


@pytest.mark.parametrize("preset", ["a b", "a;b", "$(x)", "../x", "a/b", "it's", "-x", ""])
def test_a_preset_is_the_name_of_a_file(tmp_path: Path, preset: str) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"source": "x", "pretrain": [preset], "distill": {}}))
    with pytest.raises(VitrailError, match="pretrain"):
        load_params(path, PipelineParams)
