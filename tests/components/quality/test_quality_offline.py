"""Data Docs are whole where there is no internet."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from components.quality import QualityError, Rule, Suite, validate
from components.quality.offline import without_remote


class Loaded(HTMLParser):
    """Addresses that a browser would load, and links within the site."""

    def __init__(self) -> None:
        super().__init__()
        self.assets, self.links = list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "poster") and value:
                (self.links if tag == "a" else self.assets).append(value)


def test_no_page_loads_anything_from_another_host_and_the_first_shows_every_rule(tmp_path: Path) -> None:
    rules = (
        Rule("x is <unique>", "expect_column_values_to_be_unique", {"column": "x"}),
        Rule("x is there", "expect_column_values_to_not_be_null", {"column": "x"}),
    )
    with pytest.raises(QualityError):
        validate(pd.DataFrame({"x": [1, 1, 2]}), Suite("numbers", "x", rules), tmp_path)
    site = tmp_path / "numbers"
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 3  # the first, the expectations, the validation
    for page in pages:
        text = page.read_text()
        loaded = Loaded()
        loaded.feed(text)
        assert [one for one in loaded.assets if "//" in one] == []
        assert "<script" not in text
        assert "url(http" not in text.replace('"', "").replace("'", "")
    for sheet in site.rglob("*.css"):
        assert "url(http" not in sheet.read_text().replace('"', "").replace("'", "")
    first = (site / "index.html").read_text()
    assert "1 of 2 rules are broken" in first
    assert "x is &lt;unique&gt;" in first
    assert "2 of 3" in first
    assert "x is there" in first
    loaded = Loaded()
    loaded.feed(first)
    assert loaded.links
    assert all((site / link).is_file() for link in loaded.links)
    validation = next((site / "validations").rglob("*.html")).read_text()
    assert "x is there" in validation  # its content is HTML, not made by a script


def test_what_a_page_says_and_its_links_stay() -> None:
    page = '<html><head><script src="https://x.test/a.js"></script><link rel="stylesheet" href="//x.test/a.css"></head>'
    page += '<body><p style="background: url(https://x.test/a.png)">words</p><a href="https://x.test">more</a>'
    page += '<img src="a.png"><img src="HTTPS://x.test/b.png"><script>late()</script></body></html>'
    text = without_remote(page)
    for kept in ("words", '<a href="https://x.test">more</a>', 'src="a.png"', "background: none"):
        assert kept in text
    for gone in ("a.js", "a.css", "b.png", "late()", "a.png)"):
        assert gone not in text
