"""``vitrail``: every command has its line, its usage and its code, and help needs nothing heavy."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from components.cli import entry
from components.cli.commands import CHECKOUT, COMMANDS
from components.errors import VitrailError

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "mlflow", "great_expectations", "faiss", "duckdb", "pandas", "pyarrow", "sklearn", "deepspeed", "ray")


def test_every_room_with_a_command_is_in_the_table() -> None:
    rooms = {path.parent.name for path in (ROOT / "components").glob("*/__main__.py")}
    rooms -= {"cli", "inputs"}  # this command itself, and what DVC alone runs
    assert rooms <= {command.module.split(".")[1] for command in COMMANDS.values()}


def test_the_help_page_has_a_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([]) == 0
    page = capsys.readouterr().out
    for command in COMMANDS.values():
        assert f" {command.name} " in page
        assert command.help.split()[0] in page


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_usage_begins_with_what_the_user_typed(
    command: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # help needs no checkout
    name = command.name  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as ended:
        entry.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.lower().startswith(f"usage: vitrail {name} ")


def test_a_room_without_its_action_lists_its_actions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        entry.main(["dedup"])
    assert "review" in capsys.readouterr().out


def test_arguments_reach_the_room_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import components.provenance.run as room

    seen = list[list[str]]()
    monkeypatch.setattr(room, "main", lambda argv: seen.append(list(argv)))
    monkeypatch.chdir(ROOT)
    assert entry.main(["forget", "--url", "http://a.test/?a=b&c", "--", "--dry-run"]) == 0
    assert seen == [["forget", "--url", "http://a.test/?a=b&c", "--", "--dry-run"]]


def test_a_misspelt_command_names_the_nearest() -> None:
    with pytest.raises(VitrailError, match=r"no command 'pretrian'; did you mean 'pretrain'"):
        entry.main(["pretrian"])


def test_a_folder_that_is_no_checkout_is_answered_with_the_way_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VitrailError) as fault:
        entry.main(["trace", "http://a.test/x.jpg"])
    assert f"cd {CHECKOUT}" in str(fault.value)
    assert CHECKOUT == ROOT


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in COMMANDS:
        assert name in script


def test_completion_refuses_a_shell_it_does_not_know() -> None:
    with pytest.raises(VitrailError, match="bash, zsh, fish"):
        entry.main(["completion", "csh"])


def test_no_help_imports_anything_heavy(tmp_path: Path) -> None:
    code = """
import contextlib, io, json, sys
from components.cli import entry
from components.cli.commands import COMMANDS
found = {}
for words in [["--help"], *([name, "--help"] for name in COMMANDS)]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        entry.main(words)
    found[" ".join(words)] = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps(found))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    for words, modules in json.loads(done.stdout).items():
        assert not set(modules) & set(HEAVY), f"vitrail {words} imports {set(modules) & set(HEAVY)}"


def test_the_code_of_the_checkout_in_the_current_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "components/cli").mkdir(parents=True)
    for part in ("components", "components/cli"):
        (tmp_path / part / "__init__.py").touch()
    (tmp_path / "components/cli/__main__.py").write_text("import sys; print('another checkout', sys.argv[1:])")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from components.cli.entry import start; start()"
    done = subprocess.run([sys.executable, "-c", code, "plan", "a b"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "another checkout ['plan', 'a b']\n"


def test_an_install_brings_the_command_and_finds_every_room() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, function = project["project"]["scripts"]["vitrail"].split(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    included = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {command.module.split(".")[0] + "*" for command in COMMANDS.values()} <= set(included)
