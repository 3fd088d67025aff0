"""Run workspaces: a preset that the checkout does not list is reproduced beside it, and no tracked file changes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import State
from prefect.states import Completed

from components.errors import VitrailError
from flows import launch
from flows.settings import load_pipeline
from flows.workspace import Work, checkout_files, prepare, work_of_continued, work_of_preset

DVC = """
vars:
  - params/pipeline.yaml
stages:
  crawl: {cmd: "mkdir -p data && echo pictures > data/crawl", outs: [data/crawl]}
  curate: {cmd: cp data/crawl data/curate, deps: [data/crawl], outs: [data/curate]}
  dedup: {cmd: cp data/curate data/dedup, deps: [data/curate], outs: [data/dedup]}
  pretrain:
    matrix:
      preset: ${pretrain}
    cmd: mkdir -p data/pretrain && cat data/dedup params/pretrain/${item.preset}.yaml > data/pretrain/${item.preset}
    deps:
      - data/dedup
      - params/pretrain/${item.preset}.yaml
    outs:
      - data/pretrain/${item.preset}
  continue:
    foreach: ${continued}
    do:
      cmd: mkdir -p data/continue && cat data/dedup ${item.start}/weights > data/continue/${key}
      deps: [data/dedup, "${item.start}"]
      outs: ["data/continue/${key}"]
  gain:
    foreach: ${continued}
    do:
      cmd: mkdir -p data/gain && cat ${item.start}/weights data/continue/${key} > data/gain/${key}
      deps: ["${item.start}", "data/continue/${key}"]
      outs: ["data/gain/${key}"]
"""


def sh(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(folder: Path, *arguments: str) -> str:
    return sh(folder, sys.executable, "-m", "dvc", *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "checkout"
    (root / "params/pretrain").mkdir(parents=True)
    for preset in ("small", "big"):
        (root / f"params/pretrain/{preset}.yaml").write_text(f"name: {preset}\n")
    (root / "params/pipeline.yaml").write_text("source: here\npretrain:\n  - small\ncontinued: {}\ndistill: {}\n")
    (root / "dvc.yaml").write_text(DVC)
    (root / ".gitignore").write_text("/data/\n/runs/\n/scratch/\n")
    sh(root, "git", "init", "-q")
    dvc(root, "init", "-q")
    sh(root, "git", "add", "-A")
    sh(root, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x")
    dvc(root, "repro", "-q")
    return root


@pytest.fixture
def checkout(made: Path, tmp_path: Path) -> Path:
    """A copy of a checkout in which the listed stages have run."""
    shutil.copytree(made, tmp_path / "checkout", symlinks=True)
    return tmp_path / "checkout"


def prepared(checkout: Path, work: Work) -> Path:
    return prepare(work, checkout)[0]


def test_another_preset_gets_its_own_workspace_and_its_result_comes_back_through_the_run_cache(checkout: Path) -> None:
    clean = sh(checkout, "git", "status", "--porcelain")
    made = prepared(checkout, work_of_preset("pretrain", "big", checkout))
    assert made == checkout / "runs/pretrain-big"
    assert (made / "data/dedup").read_text() == "pictures\n"  # checked out, not made again
    dvc(made, "repro", "--single-item", "pretrain@big")
    assert (made / "data/pretrain/big").read_text() == "pictures\nname: big\n"
    assert sh(checkout, "git", "status", "--porcelain") == clean
    assert not (checkout / "data/pretrain/big").exists()
    # Listing the preset in the checkout later brings the result in without doing the work again.
    (checkout / "params/pipeline.yaml").write_text(
        "source: here\npretrain:\n  - small\n  - big\ncontinued: {}\ndistill: {}\n"
    )
    assert "is cached - skipping run" in dvc(checkout, "repro", "pretrain@big")
    assert (checkout / "data/pretrain/big").read_text() == "pictures\nname: big\n"


def test_the_next_run_of_a_preset_sees_new_code_and_keeps_its_scratch_state(checkout: Path) -> None:
    made = prepared(checkout, work_of_preset("pretrain", "big", checkout))
    (made / "scratch").mkdir(exist_ok=True)
    (made / "scratch/checkpoint").write_text("step 100")
    (made / "left-over.py").write_text("")
    (checkout / "params/pretrain/big.yaml").write_text("name: bigger\n")
    (checkout / "new.py").write_text("1\n")
    assert prepared(checkout, work_of_preset("pretrain", "big", checkout)) == made
    assert (made / "scratch/checkpoint").read_text() == "step 100"
    assert (made / "params/pretrain/big.yaml").read_text() == "name: bigger\n"
    assert (made / "new.py").exists()
    assert not (made / "left-over.py").exists()
    assert yaml.safe_load((made / "params/pipeline.yaml").read_text())["pretrain"] == ["big"]


def test_stages_that_have_not_run_yet_are_named(checkout: Path) -> None:
    (checkout / "dvc.lock").unlink()
    with pytest.raises(VitrailError, match="pretrain@big: crawl, curate, dedup has not run in"):
        prepared(checkout, work_of_preset("pretrain", "big", checkout))


def test_an_unknown_preset_is_answered_with_those_there_are(checkout: Path) -> None:
    with pytest.raises(VitrailError, match=r"huge\.yaml: no such preset; there are: big, small"):
        work_of_preset("pretrain", "huge", checkout)


def test_a_student_needs_a_teacher_that_is_trained_here(checkout: Path) -> None:
    (checkout / "params/distill").mkdir()
    (checkout / "params/distill/tiny.yaml").write_text("")
    with pytest.raises(VitrailError, match=r"the teacher must be one of .*\(small\)"):
        work_of_preset("distill", "tiny", checkout, teacher="big")


def test_training_goes_on_from_any_model_of_the_checkout_and_sees_it_change(checkout: Path) -> None:
    (checkout / "params/continue").mkdir()
    (checkout / "params/continue/small.yaml").write_text("init: data/models/released\n")
    with pytest.raises(VitrailError, match=r"data/models/released: no such model in .*; run: vitrail import"):
        work_of_continued("small", checkout)
    for name in ("released", "other"):
        (checkout / "data/models" / name).mkdir(parents=True)
        (checkout / "data/models" / name / "weights").write_text(f"{name}\n")
    made = prepared(checkout, work_of_continued("small", checkout))
    assert made == checkout / "runs/continue-small"
    for stage in ("continue@small", "gain@small"):
        dvc(made, "repro", "--single-item", stage)
    assert (made / "data/gain/small").read_text() == "released\npictures\nreleased\n"
    (checkout / "data/models/released/weights").write_text("fixed\n")
    assert prepared(checkout, work_of_continued("small", checkout)) == made
    dvc(made, "repro", "--single-item", "continue@small")
    assert (made / "data/continue/small").read_text() == "pictures\nfixed\n"
    prepared(checkout, work_of_continued("small", checkout, "data/models/other"))
    dvc(made, "repro", "--single-item", "continue@small")
    assert (made / "data/continue/small").read_text() == "pictures\nother\n"
    with pytest.raises(VitrailError, match=r"huge\.yaml: no such preset; there are: small"):
        work_of_continued("huge", checkout)
    prepared(checkout, work_of_continued("small", checkout, "s3://bucket/models/a"))  # DVC watches it there
    assert load_pipeline(made).continued["small"].start == "s3://bucket/models/a"


@pytest.mark.parametrize(
    ("named", "folder"),
    [
        (f"https://h/dinov2 small.pth#sha256={'0' * 64}", r"data/models/dinov2-small-pth-[0-9a-f]{8}"),
        ("models:/vits@champion", r"data/models/vits-champion-[0-9a-f]{8}"),
    ],
)
def test_a_model_that_dvc_cannot_watch_is_imported_first(
    named: str, folder: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "params/continue").mkdir()
    (checkout / "params/continue/small.yaml").write_text("init: data/models/released\n")
    steps: list[Any] = []

    def step(name: str) -> Any:
        def note(*given: Any, **_: Any) -> State[Any]:
            steps.append((name, *given))
            return Completed()

        return note

    monkeypatch.chdir(checkout)
    for name in ("check", "command", "work_of_continued", "_work"):
        monkeypatch.setattr(launch, name, step(name))
    monkeypatch.setattr(launch, "load_platform", lambda root: None)
    assert launch.run_continued("small", named).is_completed()
    (_, room, action, (out, *rest), *_), (_, preset, root, start) = steps[1:3]
    assert (room, action, rest, preset, root) == ("release", "import", ["--", named], "small", checkout)
    assert re.fullmatch(folder, start)
    assert out == f"--out={start}"
    steps.clear()
    launch.run_continued("small")
    assert [each[0] for each in steps] == ["check", "work_of_continued", "_work"]


def test_files_of_a_checkout_are_tracked_and_new_ones_but_not_ignored_ones(checkout: Path) -> None:
    (checkout / "new.py").write_text("")
    (checkout / "data").mkdir(exist_ok=True)
    (checkout / "data/ignored").write_text("")
    files = checkout_files(checkout)
    assert {"dvc.yaml", "new.py"} <= set(files)
    assert "data/ignored" not in files


def test_no_checkout_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VitrailError, match="not a git checkout"):
        checkout_files(tmp_path)
