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
    assert {"SafetyModel", "ImageFilter", "load_descriptor"} <= names
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", code)) == []


@pytest.mark.parametrize("name", ["README.md", "docs/curation.md"])
def test_the_table_of_sources_is_that_of_the_code(name: str) -> None:
    from components.web.sources.forms import table

    assert f"\n{table()}\n" in (ROOT / name).read_text()


def test_the_parameter_file_and_the_help_page_list_the_same_sources(capsys: pytest.CaptureFixture[str]) -> None:
    from components.crawl.run import main
    from components.web.sources.forms import FORMS

    comments = (ROOT / "params/pipeline.yaml").read_text()
    assert main(["run", "--help"]) == 0
    page = re.sub(r"[\s│]+", "", capsys.readouterr().out)
    for form, what in FORMS:
        plain = form.replace("`", "")
        assert f"#   {plain}: {what.replace('`', '')}\n" in comments
        assert re.sub(r"\s+", "", plain) in page
    assert len(re.findall(r"(?m)^#   ", comments)) == len(FORMS)


# Phrases that must be read twice. What to write instead is in CONTRIBUTING.md: one idea a sentence, common words.
RIDDLES = re.compile(
    r"\bheld against\b|\blaid over (?!pictures|a picture)|\bone door\b|\bsays it\b|\bwhoever\b|\bstands? in\b"
    r"|\b(?:of them|of it|of these) only\b",
    re.IGNORECASE,
)


def _prose() -> list[Path]:
    code = [path for room in ("components", "flows", "infra") for path in sorted((ROOT / room).rglob("*.py"))]
    return [*DOCUMENTS, *code, *sorted((ROOT / "params").rglob("*.yaml")), ROOT / "dvc.yaml"]


def test_no_text_uses_a_phrase_that_must_be_read_twice() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _prose()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if RIDDLES.search(line)
    ]
    assert found == []


def test_the_page_on_curation_names_every_reason() -> None:
    from components.curate.results.reasons import REASONS
    from components.web.sources.kinds import LEFT

    text = (ROOT / "docs/curation.md").read_text()
    rows = set(
        re.findall(r"`([\w-]+)`", "\n".join(line.split("|")[1] for line in text.splitlines() if line[:3] == "| `"))
    )
    assert sorted({*REASONS, *LEFT} - rows) == []
