"""Links in the documents lead somewhere, and what they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_resolves(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), f"{document.name} links to {target}, which is not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_is_named_is_there(document: Path) -> None:
    there = {n for path in (ROOT / "tests").rglob("test_*.py") for n in re.findall(r"def (test_\w+)", path.read_text())}
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"`(test_\w+)`", document.read_text()))
    assert named <= there | files, f"{document.name} names {sorted(named - there - files)}, which are not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_code_file_that_is_named_is_there(document: Path) -> None:
    named = re.findall(r"`((?:[\w-]+/)+[\w-]+\.py)`", document.read_text())
    missing = [path for path in named if not ((ROOT / path).exists() or (ROOT / "components" / path).exists())]
    assert missing == [], f"{document.name} names files that are not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_holds_what_a_merge_left(document: Path) -> None:
    assert not re.search(r"^(<<<<<<<|>>>>>>>) ", document.read_text(), re.MULTILINE)


def test_what_the_page_on_extending_names_in_code_is_there() -> None:
    text = (ROOT / "docs/extending.md").read_text()
    code = "\n".join(path.read_text() for path in (ROOT / "components").rglob("*.py"))
    names = set(re.findall(r"`([A-Z][a-z]+[A-Z]?\w+|[a-z]+_[a-z_]+)`", text))
    names -= {name for name in names if name.startswith("test_")}
    assert {"SafetyModel", "BenchmarkParams", "load_descriptor"} <= names
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", code)) == []
