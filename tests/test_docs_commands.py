"""The commands that the documents show exist, with every option they show; nothing is run."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from components.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
_START = re.compile(
    r"^(?:\S*torchrun .*?-m |srun .*?-m |\$ )?(?:\.venv/bin/)?"
    r"(vitrail|python -m (?:components|infra)\.[\w.]+)(?![\w.])(.*)"
)


def shown(document: Path) -> list[str]:
    """The commands of vitrail in code blocks and between backticks."""
    text = document.read_text().replace("\\\n", " ")
    blocks = re.findall(r"(?ms)^```(?:console|text|)\n(.*?)^```", text)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    lines += [line.strip() for line in re.findall(r"(?m)^    (\S.*)$", text)]
    without = re.sub(r"(?ms)^```.*?^```", "", text)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without)]
    return [line for line in lines if _START.match(line)]


def words(line: str) -> tuple[str, list[str]]:
    """(``vitrail`` or the module, the words behind it)."""
    match = _START.match(line)
    assert match is not None
    return match[1].removeprefix("python -m "), shlex.split(match[2], comments=True)


def room(module: str) -> str:
    """The module that reads the command line of ``python -m module``."""
    base = ROOT / module.replace(".", "/")
    return next((f"{module}.{name}" for name in ("run", "command") if (base / f"{name}.py").is_file()), module)


@cache
def help_of(module: str, *before: str) -> str:
    """The help page of a module's command; "" where it has none."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = importlib.import_module(module).main([*before, "--help"])
    return out.getvalue() if code == 0 and out.getvalue().startswith("Usage") else ""


def help_page(module: str, words: list[str]) -> str:
    """The help of the innermost command that ``words`` begin with."""
    before = [word for word in words[:2] if re.fullmatch(r"[a-z][a-z-]*", word)]
    return next((page for count in (2, 1, 0) if (page := help_of(module, *before[:count]))), "")


def faults(line: str) -> list[str]:
    """What is wrong with a command that a document shows."""
    program, rest = words(line)
    if "STAGE" in line:  # a placeholder
        return []
    module = room(program)
    if program == "vitrail":
        name = next((word for word in rest if not word.startswith("-")), "")
        if rest[:1] in (["--install-completion"], ["--show-completion"], ["--help"], ["--version"]) or not name:
            return []
        if name.isupper():  # a placeholder
            return []
        if name not in COMMANDS:
            return [f"{line}: no such command"]
        module = "components.cli.entry"
    by_hand = ROOT / "infra/stage_code.py"  # it reads its one option without a help page
    page = by_hand.read_text() if module == "infra.stage_code" else help_page(module, rest)
    options = {word.split("=")[0] for word in rest if re.match(r"--[a-z]", word)}
    return [f"{line}: no option {option}" for option in sorted(options) if not re.search(rf"{option}\b", page)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_shown_is_one_with_the_options_shown(document: Path) -> None:
    assert [fault for line in shown(document) for fault in faults(line)] == []


def test_the_reader_finds_commands_and_a_wrong_one(tmp_path: Path) -> None:
    file = tmp_path / "x.md"
    blocks = "```\nvitrail run --no-such  # x\nls\n```\n\n    python -m components.dedup search x.jpg\n"
    file.write_text(f"Run `vitrail plan\npretrain --gpus 8`.\n\n{blocks}`vitrail.tag`\n")
    assert sorted(shown(file)) == [
        "python -m components.dedup search x.jpg", "vitrail plan pretrain --gpus 8", "vitrail run --no-such  # x",
    ]  # fmt: skip
    found = [fault for line in shown(file) for fault in faults(line)]
    assert found == ["vitrail run --no-such  # x: no option --no-such"]
    assert faults("vitrail lpan") == ["vitrail lpan: no such command"]
