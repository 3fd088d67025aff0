"""What the comments say about a parameter: those of its YAML file, and those beside the field of its model."""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from components.params import Strict


def of_file(path: Path) -> dict[str, str]:
    """Dotted key -> the comment on its line, and the lines of comments directly above it; not the file's first ones."""
    text = path.read_text(encoding="utf-8")
    beside, alone = _split(text)
    found: dict[str, str] = {}
    seen: set[int] = set()
    for key, line in _keys(yaml.compose(text)):
        if line in seen:
            continue  # {a: 1, b: 2}: the comment is the first key's, or that of the mapping they are in
        seen.add(line)
        above, at = list[str](), line - 1
        while at in alone:
            above.insert(0, alone[at])
            at -= 1
        if at < 0:
            above = []  # the file's own comment, at its beginning
        if words := " ".join([*above, beside.get(line, "")]).replace(" ; ", "; ").replace(":; ", ": ").strip("; "):
            found[key] = words
    return found


def _keys(node: Any, above: str = "") -> list[tuple[str, int]]:
    """(dotted key, line) of every key below ``node``, in the file's order."""
    found = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found.append((f"{above}{key.value}", key.start_mark.line))
            found += _keys(value, f"{above}{key.value}.")
    return found


def _split(text: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line: those behind a value, and those alone on their line."""
    beside: dict[int, str] = {}
    alone: dict[int, str] = {}
    for number, line in enumerate(text.splitlines()):
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", lambda quoted: " " * len(quoted[0]), line)
        match = re.search(r"(?:^|\s)#\s?(.*)", bare)
        if match is None:
            continue
        words = line[match.start(1) :]
        words = f"; {words.strip()}" if words.startswith("  ") else words.strip()  # an item of a list in the comment
        (alone if not line[: match.start()].strip() else beside)[number] = words
    return beside, alone


@cache
def of_model(model: type[Strict]) -> dict[str, str]:
    """Field -> the comment behind it, and the lines of comments directly above it, its own or its parents'."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if isinstance(cls, type) and issubclass(cls, Strict) and cls is not Strict:
            found |= _fields(inspect.getsource(cls), set(cls.__annotations__))
    return found


def _fields(source: str, names: set[str]) -> dict[str, str]:
    text = textwrap.dedent(source)
    lines = text.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith(("# type:", "# fmt:", "# noqa"))
    }
    found = {}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.target.id not in names:
            continue
        above, at = list[str](), node.lineno - 1
        while at in comments and lines[at - 1].strip().startswith("#"):
            above.insert(0, comments[at])
            at -= 1
        beside = [comments[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in comments]
        if words := " ".join([*above, *beside]).strip():
            found[node.target.id] = words
    return found
