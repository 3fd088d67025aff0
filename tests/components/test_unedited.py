"""What a stage depends on may not be edited while it runs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import VitrailError
from components.unedited import dependencies, unedited

ROOT = Path(__file__).parents[2]
PIPELINE = """
stages:
  pretrain:
    matrix: {preset: [small, large]}
    cmd: python -m components.pretrain run
    deps: [components/pretrain, components/errors.py, data/curate]
    params:
      - params/pretrain/${item.preset}.yaml:
      - params/pipeline.yaml: [source]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "dvc.yaml": PIPELINE,
        "components/pretrain/stage.py": "old = 1\n",
        "components/errors.py": "",
        "params/pretrain/small.yaml": "a: 1\n",
        "params/pretrain/large.yaml": "a: 1\n",
        "params/pipeline.yaml": "source: x\n",
        "data/curate": "rows",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(project: Path, *changes: tuple[str, str | None]) -> None:
    """Write each file anew, or remove it, while ``pretrain@small`` runs."""
    with unedited("pretrain@small"):
        for name, content in changes:
            if content is None:
                (project / name).unlink()
            else:
                (project / name).parent.mkdir(exist_ok=True)
                (project / name).write_text(content)


@pytest.mark.parametrize("name", ["components/pretrain/stage.py", "components/errors.py", "params/pretrain/small.yaml"])
def test_a_file_that_the_stage_depends_on_is_named(project: Path, name: str) -> None:
    with pytest.raises(VitrailError, match=rf"pretrain@small: edited while it ran: {name}; DVC would record"):
        edit(project, (name, "new"))


def test_a_new_and_a_removed_file_are_edits(project: Path) -> None:
    with pytest.raises(VitrailError, match=r"components/errors.py, components/pretrain/new.py; DVC"):
        edit(project, ("components/errors.py", None), ("components/pretrain/new.py", ""))


@pytest.mark.parametrize(
    "name",
    ["params/pretrain/large.yaml", "params/pipeline.yaml", "data/curate", "components/pretrain/__pycache__/a.pyc"],
)
def test_other_files_may_change(project: Path, name: str) -> None:
    edit(project, (name, "new"))


def test_outside_of_dvc_nothing_is_looked_at(project: Path) -> None:
    for stage in (None, "another", "pretrain@large"):
        with unedited(stage):
            (project / "params/pretrain/small.yaml").write_text("new\n")
    (project / "dvc.yaml").unlink()
    with unedited("pretrain@small"):
        (project / "params/pretrain/small.yaml").write_text("newer\n")


def test_a_fault_inside_stays_what_it_is(project: Path) -> None:
    with pytest.raises(FileNotFoundError):
        edit(project, ("components/errors.py", None), ("components/missing.py", None))


@pytest.mark.parametrize("stage", ["crawl", "curate", "dedup", "pretrain@vitt", "distill@vitxt", "benchmark"])
def test_every_stage_of_this_project_watches_its_own_code_and_parameters(stage: str) -> None:
    found = {path.relative_to(ROOT).as_posix() for path in dependencies(stage, ROOT / "dvc.yaml")}
    name, _, preset = stage.partition("@")
    assert f"components/{name}" in found
    assert f"params/{name}/{preset}.yaml" if preset else f"params/{name}.yaml" in found
    assert all((ROOT / each).exists() for each in found if not each.startswith("params/demo"))


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from components.command_line import application, commands_of
from components.errors import run_cli

app = application("made", "")

@app.default
def made() -> None:
    Path("components/code.py").write_text(Path("edit").read_text())
    Path("out").write_text("made")

raise SystemExit(run_cli(commands_of(app), []))
"""


def test_dvc_records_no_result_of_a_stage_that_was_edited_while_it_ran(tmp_path: Path) -> None:
    (tmp_path / "components").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    command = shlex.join([sys.executable, "script.py", str(ROOT)])
    stage = {"cmd": command, "deps": ["components/code.py"], "outs": ["out"]}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"made": stage}}))
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    for edit, recorded in (("new", False), ("old", True)):
        (tmp_path / "components/code.py").write_text("old")
        (tmp_path / "edit").write_text(edit)
        done = subprocess.run([*dvc, "repro"], cwd=tmp_path, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert (done.returncode == 0, (tmp_path / "dvc.lock").exists()) == (recorded, recorded), said
        assert ("made: edited while it ran: components/code.py" in said) != recorded, said
