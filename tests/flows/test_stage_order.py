"""The flows' order is the DVC graph's: the two cannot drift apart."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from patience import PATIENCE

from flows.settings import Continued, load_pipeline
from flows.stages import report_path, stage_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dag() -> tuple[set[str], set[tuple[str, str]]]:
    """Stages and (before, after) pairs, as DVC itself resolves dvc.yaml and params/pipeline.yaml."""
    command = [sys.executable, "-m", "dvc", "dag", "--dot"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    return set(re.findall(r'^"([^"]+)";$', text, re.M)), set(re.findall(r'^"([^"]+)" -> "([^"]+)";$', text, re.M))


def test_the_pipeline_flow_runs_exactly_the_stages_of_the_graph(dag: tuple[set[str], set[tuple[str, str]]]) -> None:
    names = stage_names(load_pipeline(ROOT))
    assert len(names) == len(set(names))
    assert set(names) == dag[0]


def test_every_stage_comes_after_what_it_needs(dag: tuple[set[str], set[tuple[str, str]]]) -> None:
    place = {name: i for i, name in enumerate(stage_names(load_pipeline(ROOT)))}
    assert len(dag[1]) >= 5
    assert [(before, after) for before, after in dag[1] if place[before] >= place[after]] == []


def test_what_goes_on_from_a_model_is_made_before_it_is_compared() -> None:
    pipeline = load_pipeline(ROOT).model_copy(update={"continued": {"vitt": Continued(start="data/pretrain/vitt")}})
    names = stage_names(pipeline)
    assert names.index("pretrain@vitt") < names.index("continue@vitt") < names.index("gain@vitt")


def test_each_flow_runs_its_families_in_the_pipelines_order() -> None:
    pipeline = load_pipeline(ROOT)
    assert stage_names(pipeline, "crawl", "curate") == ["crawl", "curate"]
    assert stage_names(pipeline, "pretrain") == [f"pretrain@{preset}" for preset in pipeline.pretrain]


def test_reports_are_where_dvc_yaml_puts_them() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    declared = set()
    for stage in stages.values():
        declared |= {path for entry in stage.get("do", stage).get("metrics", []) for path in entry}
    ours = {report_path(name) for name in ("curate", "dedup", "benchmark")}
    ours |= {report_path("pretrain@${item.preset}")}
    ours |= {report_path(f"{family}@${{key}}") for family in ("continue", "gain", "distill")}
    assert declared == ours


def test_no_params_file_that_a_stage_takes_whole_is_empty() -> None:
    """DVC keeps no run cache for such a stage: it would run again in every workspace and reproduction."""
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    stages = [stage.get("do", stage) for stage in content["stages"].values()]
    listed = {
        name for stage in stages for entry in stage.get("params", []) if isinstance(entry, dict)
        for name, keys in entry.items() if not keys
    }  # fmt: skip
    assert "params/crawl.yaml" in listed
    patterns = [re.sub(r"\$\{[^}]*\}", "*", name) for name in listed]
    files = [path for pattern in patterns for path in ROOT.glob(pattern)]
    assert [str(path) for path in files if not yaml.safe_load(path.read_text())] == []
