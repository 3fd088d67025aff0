"""The site: each document is in the menu, links lead where the site has them, and its sources are there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from components.errors import VitrailError
from infra.docs import hooks, offline

ROOT = Path(__file__).resolve().parents[2]


def menu() -> set[str]:
    return set(re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))


def test_every_document_is_in_the_menu_and_every_page_of_the_menu_is_made() -> None:
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert menu() == written | {
        "index.md",
        "parameters.md",
        "reference.md",
        "commands.md",
        "contributing.md",
        "changelog.md",
    }


@pytest.mark.parametrize(
    ("text", "at_the_top", "expected"),
    [
        ("[a](docs/using.md#x)", True, "[a](using.md#x)"),
        ("![a](docs/pca.jpg)", True, "![a](pca.jpg)"),
        ("[a](using.md#x)", False, "[a](using.md#x)"),
        ("[a](../README.md)", False, "[a](index.md)"),
        ("[a](CONTRIBUTING.md)", True, "[a](contributing.md)"),
        ("[the code](../components/params.py)", False, "the code"),
        ("[params](params/pipeline.yaml)", True, "params"),
        ("[a](https://example.org/x.md) [b](#c)", True, "[a](https://example.org/x.md) [b](#c)"),
    ],
)
def test_links_stay_on_the_site(text: str, at_the_top: bool, expected: str) -> None:
    assert hooks.relinked(text, at_the_top) == expected


def test_anchors_within_the_documents_exist() -> None:
    def anchors(text: str) -> set[str]:
        heads = re.findall(r"^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", text), re.MULTILINE)
        return {
            re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head.replace("`", "")).strip().lower()) for head in heads
        }

    missing = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        for page, anchor in re.findall(r"\]\(([\w-]+\.md)?#([\w-]+)\)", path.read_text()):
            if anchor not in anchors((path.parent / (page or path.name)).read_text()):
                missing.append(f"{path.name}: {page}#{anchor}")
    assert missing == []


def test_the_reference_names_modules_that_are_there() -> None:
    assert [name for name in hooks.ENTRY_POINTS if importlib.util.find_spec(name) is None] == []


def test_nothing_of_the_theme_is_fetched_for_its_looks_and_nothing_is_measured() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in text
    assert "strict: true" in text
    assert "analytics" not in text


def test_a_page_that_loads_from_another_host_is_found(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text('<a href="https://example.org/">x</a><link rel="canonical" href="https://docs.test/"><p>unpkg</p>')
    assert offline.foreign(tmp_path) == []
    for loads in (
        '<script src="https://cdn.test/x.js">',
        "<link rel=stylesheet href=//cdn.test/x.css>",
        "<style>@font-face{src:url(https://cdn.test/x.woff2)}</style>",
        '<script>load("https://unpkg.com/x")</script>',
    ):
        page.write_text(loads)
        assert len(offline.foreign(tmp_path)) == 1


def test_the_theme_loads_mermaid_from_the_site(tmp_path: Path) -> None:
    scripts = tmp_path / "assets/javascripts"
    scripts.mkdir(parents=True)
    bundle = scripts / "bundle.0a.min.js"
    bundle.write_text(";".join(f"_t({address})" for address in offline.INSTEAD))
    offline.make_offline(tmp_path, b"mermaid")
    assert "https:" not in bundle.read_text()
    assert (tmp_path / "assets/mermaid.min.js").read_bytes() == b"mermaid"
    with pytest.raises(VitrailError, match="theme does not name"):
        offline.make_offline(tmp_path, b"mermaid")


def test_another_mermaid_than_the_named_one_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / offline.MERMAID.rpartition("/")[2]
    kept.write_bytes(b"another")
    with pytest.raises(VitrailError, match="not the file"):
        offline.mermaid(tmp_path)
