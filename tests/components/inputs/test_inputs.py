"""What parameters name is seen when its content changes, by the digests and by DVC itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components.inputs import content
from components.inputs.content import Contents
from components.inputs.named import named_inputs
from components.inputs.run import write
from components.pipeline import load_pipeline
from components.storage import StorageParams
from components.tracking.registry import ModelVersion

ROOT = Path(__file__).resolve().parents[3]
STORAGE = StorageParams(root="data")


def labelled(path: Path, rows: int) -> None:
    split = ["test"] + ["train"] * (rows - 1)
    pq.write_table(pa.table({"image": [b"x"] * rows, "kind": list(range(rows)), "split": split}), path)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose parameters name a labelled Parquet file, masks, weights and a table of addresses."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    labelled(tmp_path / "labelled.parquet", 3)
    labelled(tmp_path / "links.parquet", 4)
    for folder in ("images", "masks", "weights/below"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.png").write_bytes(folder.encode())

    def change(name: str, **values: object) -> None:
        path = tmp_path / "params" / name
        path.write_text(yaml.safe_dump((yaml.safe_load(path.read_text()) or {}) | values))

    change("benchmarks.yaml", mine={"kind": "parquet", "path": "labelled.parquet", "labels": ["kind"]})
    vitt = yaml.safe_load((tmp_path / "params/pretrain/vitt.yaml").read_text())
    dense = {"kind": "folder", "images": "images", "masks": "masks", "train": 2, "held_out": 1, "image_size": 96}
    change("pretrain/vitt.yaml", init="weights", probe=vitt["probe"] | {"benchmark": "mine", "dense": dense})
    (tmp_path / "params/site/own.yaml").write_text("kind: fetch\nsource: links.parquet\n")
    change("pipeline.yaml", source="params/site/own.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(workspace: Path) -> dict[str, bytes]:
    write(Path("params"), Path("data/inputs"), Path("scratch/inputs.json"))
    return {path.stem: path.read_bytes() for path in (workspace / "data/inputs").iterdir()}


def test_each_stage_has_what_its_parameters_name(workspace: Path) -> None:
    found = named_inputs(Path("params"), load_pipeline())
    names = {stage: set(named.values()) for stage, named in found.items()}
    assert names["dedup"] == names["benchmark"] == {"labelled.parquet"}
    assert names["pretrain-vitt"] == {"labelled.parquet", "images", "masks", "weights"}
    assert "links.parquet" in names["crawl"]
    assert names["distill-vitxt"] == set()


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("labelled.parquet", {"dedup", "benchmark", "pretrain-vitt"}),
        ("masks/0.png", {"pretrain-vitt"}),
        ("images/0.png", {"pretrain-vitt"}),
        ("weights/below/0.png", {"pretrain-vitt"}),
        ("links.parquet", {"crawl"}),
        ("params/policy/forgotten.txt", {"crawl", "curate"}),
    ],
)
def test_new_content_under_an_old_name_size_and_time_is_seen(workspace: Path, path: str, stages: set[str]) -> None:
    before = written(workspace)
    assert written(workspace) == before
    file = workspace / path
    data, stat = file.read_bytes(), file.stat()
    file.write_bytes(bytes(reversed(data)))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = written(workspace)
    assert {stage for stage in before if before[stage] != after[stage]} == stages


def test_what_is_pinned_is_not_read_and_an_alias_is_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = f"s3://bucket/w.pth#sha256={'0' * 64}"
    monkeypatch.setattr(content.Registry, "version", lambda self, source: ModelVersion("vits", 3))
    with Contents(tmp_path / "cache.json", STORAGE) as contents:
        assert contents.digest(pinned) == pinned
        assert contents.digest("models:/vits@champion") == "models:/vits/3"
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    with Contents(tmp_path / "cache.json", STORAGE) as contents:
        assert contents.digest("models:/vits@champion").startswith("unreachable: MLflow at")


def test_folders_count_by_names_and_bytes_and_nothing_there_is_no_fault(tmp_path: Path) -> None:
    with Contents(tmp_path / "cache.json", STORAGE) as contents:
        assert contents.digest(str(tmp_path / "none")) == "missing"
        (tmp_path / "a").mkdir()
        (tmp_path / "a/x").write_bytes(b"1")
        first = contents.digest(str(tmp_path / "a"))
        os.rename(tmp_path / "a/x", tmp_path / "a/y")
        assert contents.digest(str(tmp_path / "a")) != first
        os.mkfifo(tmp_path / "a/pipe")
        assert len(contents.digest(str(tmp_path / "a"))) == 64
    (tmp_path / "cache.json").write_text("{damaged")
    with Contents(tmp_path / "cache.json", STORAGE) as contents:
        assert contents.digest(str(tmp_path / "a/y")) == contents.digest(str(tmp_path / "a/y"))


def dvc(folder: Path, *arguments: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "dvc", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dvc_runs_a_stage_again_when_a_file_that_parameters_name_gains_rows(workspace: Path) -> None:
    """The graph of dvc.yaml with commands that only count: how stages hang together is what is tried."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    short = {"inputs": stages["inputs"]}
    for name in ("dedup", "benchmark"):
        deps = [dep for dep in stages[name]["deps"] if dep.startswith("data/inputs/")]
        assert deps == [f"data/inputs/{name}.json"]
        short[name] = {"cmd": f"echo ran >> {name}.count", "deps": deps}
    (workspace / "dvc.yaml").write_text(yaml.safe_dump({"stages": short}))
    dvc(workspace, "init", "--no-scm", "--quiet")

    def count() -> dict[str, int]:
        return {name: len((workspace / f"{name}.count").read_text().split()) for name in ("dedup", "benchmark")}

    dvc(workspace, "repro")
    dvc(workspace, "repro")
    assert count() == {"dedup": 1, "benchmark": 1}
    labelled(workspace / "labelled.parquet", 9)
    assert "inputs" in dvc(workspace, "status")
    dvc(workspace, "repro")
    assert count() == {"dedup": 2, "benchmark": 2}


def test_every_stage_of_the_graph_depends_on_what_its_parameters_name() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    found = {name: [dep for dep in stage.get("do", stage).get("deps", []) if dep.startswith("data/inputs/")]
             for name, stage in stages.items() if name != "inputs"}  # fmt: skip
    several = {"pretrain": "pretrain-${item.preset}", "distill": "distill-${key}", "continue": "continue-${key}"}
    several["gain"] = "benchmark"  # it is one
    assert found == {name: [f"data/inputs/{several.get(name, name)}.json"] for name in found}
    assert stages["inputs"]["always_changed"] is True
    assert set(found) == {"crawl", "curate", "dedup", "pretrain", "distill", "benchmark", "continue", "gain"}
