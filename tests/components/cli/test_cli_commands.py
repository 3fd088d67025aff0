"""``vitrail``: every command has its line, its usage and its code, and help needs nothing heavy."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from components import command_line
from components.cli import entry
from components.cli.commands import CHECKOUT, COMMANDS
from components.errors import VitrailError, run_cli
from components.pipeline import with_stage

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
    assert entry.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: vitrail {name}")


def test_a_room_without_its_action_lists_its_actions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert entry.main(["dedup"]) == 0
    assert "review" in capsys.readouterr().out


def test_arguments_reach_the_command_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import components.provenance.trace as room

    seen = list[str]()
    monkeypatch.setattr(room, "trace", lambda image, *_: seen.append(image))
    monkeypatch.chdir(ROOT)
    for image in ("http://a.test/?a=b&c", "--dry-run"):
        assert entry.main(["trace", "--", image]) == 0
    assert seen == ["http://a.test/?a=b&c", "--dry-run"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["forget"], "vitrail forget: .*give one of --domain, --url, --key"),
        (
            ["embed", "--images", "i", "--modle", "x"],
            "vitrail embed: --model is missing; did you mean --model instead of --modle",
        ),
        (["dedup", "run", "--params", "x", "--benchmarks"], "--benchmarks requires an argument"),
        (["dedup", "serach"], 'did you mean "search"'),
        (
            ["classify", "fit", "--images", "i", "--model", "m", "--out", "o", "--method", "svm"],
            '"svm" for --method. Choose from: "knn", "logistic"',
        ),
        (["serve", "--model", "m", "--port", "x"], "--port: unable to convert"),
        (["embed", "--images", "i", "--model", "m", "--btach", "3"], "--btach; did you mean --batch"),
        (["doctor", "x"], r"Unused Tokens: \['x'\]"),
    ],
    ids=["none-of-a-group", "typo", "no-value", "action", "choice", "number", "unknown-option", "too-many"],
)
def test_a_wrong_command_line_is_one_line_and_code_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert entry.main(words) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(f"error: .*{told}.*; `vitrail .* --help` explains\n", shown.err, re.IGNORECASE)
    assert shown.out == ""


def test_ctrl_c_in_a_command_is_answered_with_how_to_carry_on(capsys: pytest.CaptureFixture[str]) -> None:
    app = command_line.application("x", "About it.")

    @app.command
    def go() -> None:
        """Go."""
        raise KeyboardInterrupt

    assert run_cli(command_line.commands_of(app), ["go"]) == 130
    assert capsys.readouterr().err == "stopped: run the same command again to carry on\n"
    top = entry.application()
    top.command(app)
    with pytest.raises(KeyboardInterrupt):
        command_line.dispatch(top, ["x", "go"])


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
def test_completion_knows_every_command_and_its_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--show-completion", shell]) == 0
    script = capsys.readouterr().out
    for name in COMMANDS:
        assert name in script
    for option in ("threshold-sweep", "crop-to-patch", "tflops", "no-open"):
        assert option in script


def test_bash_completes_actions_and_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    entry.main(["--show-completion", "bash"])
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _vitrail; echo ${{COMPREPLY[*]}}"
        return set(subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split())

    assert completed("vitrail", "pre") == {"pretrain"}
    assert completed("vitrail", "dedup", "re") == {"review"}
    assert completed("vitrail", "dedup", "review", "--thr") == {"--threshold-sweep"}
    assert completed("vitrail", "classify", "fit", "--method", "l") == {"logistic"}


def test_completion_refuses_a_shell_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    assert entry.main(["--show-completion", "csh"]) == 2
    monkeypatch.setenv("SHELL", "/bin/csh")
    with pytest.raises(VitrailError, match="bash, zsh or fish"):
        entry.main(["--show-completion"])


def test_installed_completion_is_a_file_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert entry.main(["--install-completion", "bash"]) == 0
    written = Path(capsys.readouterr().out.split(": ")[0])
    assert written.is_relative_to(tmp_path)
    assert "pretrain" in written.read_text()


def test_every_command_of_dvc_yaml_is_one_that_its_room_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    names = {"pretrain": "pretrain@vitt", "distill": "distill@vitxt", "gain": None, "continue": None}
    for name, stage in stages.items():
        words = shlex.split(stage.get("do", stage)["cmd"])
        at = words.index("-m")
        module, given = words[at + 1], words[at + 2 :]
        if "$DVC_STAGE" in given:
            if names[name] is None:  # the shipped pipeline continues nothing
                continue
            given = with_stage([names[name] if word == "$DVC_STAGE" else word for word in given])
        app = importlib.import_module(f"{module}.run").app
        function, _, _ = app.parse_args(given, exit_on_error=False, print_error=False)
        assert function.__name__ == "run"


def test_an_option_given_twice_counts_as_the_last_and_overrides_add_up() -> None:
    from components.pretrain.run import app

    words = ["check", "--params", "a", "--set", "x=1", "--params", "b", "--set", "y=2"]
    _, given, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert (str(given.arguments["options"].params), given.arguments["options"].set) == ("b", ("x=1", "y=2"))


def test_options_can_be_written_as_a_command_line_again() -> None:
    from components.pretrain.run import app

    words = ["run", "--params=p.yaml", "--set=a=1", "--set=b=[1, 2]", "--curated=c", "--manifest=m", "--out=-o"]
    words += ["--report=r", "--no-tracking"]
    _, given, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    _, again, _ = app.parse_args(["run", *command_line.words(given.arguments["options"])], exit_on_error=False)
    assert again.arguments == given.arguments
    assert set(words[1:]) <= set(command_line.words(given.arguments["options"]))


def test_no_help_imports_anything_heavy(tmp_path: Path) -> None:
    code = """
import contextlib, io, json, sys
from components import command_line
from components.cli import entry
from components.cli.commands import COMMANDS
found = {}
for words in [["--help"], *([name, "--help"] for name in COMMANDS)]:
    with contextlib.redirect_stdout(io.StringIO()):
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
