"""One word means one thing: no class or type alias has a name that another module gives to something else."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("components", "flows", "infra")
# name -> why it may be defined more than once
EXEMPT = {"RunOptions": "what the command `run` of a stage takes, in each stage's run.py"}


def definitions(text: str) -> dict[str, str]:
    """Public classes and type aliases at the top of a module: name -> "class", or what the alias stands for."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = "class"
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():  # not a constant
                found[name] = ast.unparse(node.value).replace("npt.", "")
    return {name: what for name, what in found.items() if not name.startswith("_")}


def ambiguous(modules: dict[str, str]) -> list[str]:
    """Names with two meanings, and where: ``modules`` are texts by path. Aliases of the same thing are one meaning."""
    meanings: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path, text in modules.items():
        for name, what in definitions(text).items():
            meanings[name][what if what != "class" else f"class in {path}"].append(path)
    return [
        f"{name}: {', '.join(sorted(path for paths in found.values() for path in paths))}"
        for name, found in sorted(meanings.items())
        if len(found) > 1
    ]


def engines_built(modules: dict[str, str]) -> list[str]:
    """Modules that call ``Engine`` themselves."""
    return sorted(
        path
        for path, text in modules.items()
        if any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Engine"
            for node in ast.walk(ast.parse(text))
        )
    )


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    files = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


def test_no_name_of_a_class_or_alias_has_two_meanings(modules: dict[str, str]) -> None:
    found = [line for line in ambiguous(modules) if line.split(":")[0] not in EXEMPT]
    assert found == [], "give each the field's term for what it is"


def test_every_exemption_is_needed(modules: dict[str, str]) -> None:
    assert {line.split(":")[0] for line in ambiguous(modules)} == set(EXEMPT)


def test_two_meanings_are_seen_and_the_same_alias_is_none() -> None:
    one = "class Place:\n    pass\nRGB = npt.NDArray[np.uint8]\nclass _Own:\n    pass\n"
    other = "Place = tuple[int, int]\nRGB = NDArray[np.uint8]\nclass _Own:\n    pass\n"
    assert ambiguous({"a.py": one, "b.py": other}) == ["Place: a.py, b.py"]
    assert ambiguous({"a.py": one, "c.py": "class Place:\n    pass\n"}) == ["Place: a.py, c.py"]


def test_an_engine_is_built_in_one_place(modules: dict[str, str]) -> None:
    assert engines_built(modules) == ["components/training/build.py"]
