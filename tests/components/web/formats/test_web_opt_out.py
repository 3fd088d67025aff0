"""X-Robots-Tag and robots meta elements: each header alone, dates with commas, agents' names."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.web.formats.links import parse_page
from components.web.formats.opt_out import headers_said
from components.web.formats.warc import Faults, WarcWriter, read_warc


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["unavailable_after: Fri, 25 Jun 2010 15:00:00 PST, noai"], True),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], True),
        (["unavailable_after: Friday, 25-Jun-10 15:00:00 UTC, noai"], True),
        (["unavailable_after: 2010-06-25T15:00:00+00:00, noai"], True),
        (["unavailable_after: Fri, 25 Jun 2010 15:00:00 PST", "noai"], True),
        (["unavailable_after: Fri, 25 Jun 2010 15:00:00 PST, otherbot: noai"], False),
        (["nosnippet", "noimageai"], True),
        (["otherbot: noindex", "noai"], True),  # the agent's name ends with its header
        (["noai", "otherbot: nofollow"], True),
        (["otherbot: noindex", "otherbot: noai"], False),
        (["otherbot : noindex, noai"], False),
        (["VITRAIL/0.1: noai"], True),
        (["*: noai"], True),
        (["max-image-preview: none"], False),
        (["max-image-preview:none, noai"], True),
        (["noindex; nofollow"], True),
        (["NoAI\tnosnippet"], True),
        ([], False),
    ],
)
def test_each_header_alone(values: list[str], expected: bool, tmp_path: Path) -> None:
    assert bool(headers_said(values, ())) is expected
    path = tmp_path / "x.warc.gz"
    with open(path, "wb") as file:
        WarcWriter(file).response("http://h.test/", 200, "OK", [("X-Robots-Tag", value) for value in values], b"x")
    (response,) = read_warc(path, Faults(), 1000)
    assert bool(headers_said(response.values("x-robots-tag"), response.values("tdm-reservation"))) is expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [("unavailable_after: 25-Aug-2007 15:00:00 EST, noai", True), ("max-image-preview: none", False),
     ("index,follow,max-image-preview:none", False), ("none", True)],
)  # fmt: skip
def test_values_of_directives_are_no_words_of_a_meta_element(content: str, expected: bool) -> None:
    assert parse_page(f'<meta name="robots" content="{content}">', "http://h.test/").opt_out is expected
