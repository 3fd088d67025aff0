"""robots.txt by RFC 9309: its own examples, and a brute-force matcher as the reference."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.web.robots import _matches, parse, rules_for


def allows(text: str, url: str, token: str = "vitrail") -> bool:
    return parse(text.encode(), token).allows(url)


@pytest.mark.parametrize(
    ("rules", "path", "expected"),
    [
        ("Disallow: /", "/a", False),
        ("Disallow:", "/a", True),
        ("Allow: /a\nDisallow: /", "/a/b", True),
        ("Disallow: /a\nAllow: /a/b", "/a/b", True),  # the longest match wins, whatever the order
        ("Allow: /a\nDisallow: /a/b", "/a/b/c", False),
        ("Allow: /a\nDisallow: /a", "/a", True),  # allow wins a tie
        ("Disallow: /*.gif$", "/x/y.gif", False),
        ("Disallow: /*.gif$", "/x/y.gif?z", True),
        ("Disallow: /a*b*c", "/aXbYcZ", False),
        ("Disallow: /a*b*c", "/aXcYb", True),
        ("Disallow: *secret", "/very/secret/x", False),
        ("Disallow: /a?x=1", "/a?x=12", False),
        ("Disallow: /A", "/a", True),  # paths keep their case
        ("Disallow: /caf%C3%A9", "/café", False),
        ("Disallow: /café", "/caf%c3%a9/x", False),
        ("Disallow: /%7Eme", "/~me", False),
        ("Disallow: /a%2Fb", "/a/b", True),  # an encoded slash is not a slash
        ("Disallow: / # all of it", "/a", False),
        ("DISALLOW : /a", "/a", False),
        ("Disallow: /", "/robots.txt", True),
        ("nonsense\nDisallow /a\nDisallow: relative", "/a", True),
    ],
)
def test_rules(rules: str, path: str, expected: bool) -> None:
    assert allows(f"User-agent: *\n{rules}\n", f"http://h.test{path}") is expected


def test_groups_by_product_token() -> None:
    text = "User-agent: *\nDisallow: /\n\nUser-Agent: ViTrail/2.0\nUser-agent: other\nDisallow: /x\n\n"
    text += "User-agent: vitrail\nDisallow: /y"
    assert allows(text, "/z")  # ours, merged, instead of *
    assert not allows(text, "/x")
    assert not allows(text, "/y")
    assert not allows(text, "/z", "someone")
    assert allows(text, "/y", "other")
    assert not allows(text, "/x", "other")
    assert allows("User-agent: vitrail\nDisallow:\n\nUser-agent: *\nDisallow: /", "/a")
    assert allows("User-agent: vitrailbot\nDisallow: /", "/a")  # another product
    assert allows("\ufeffUser-agent: other\nDisallow: /", "/a")


def test_status_codes() -> None:
    disallow = b"User-agent: *\nDisallow: /"
    assert not rules_for(200, disallow, "vitrail").allows("/a")
    assert rules_for(404, disallow, "vitrail").allows("/a")
    assert rules_for(403, disallow, "vitrail").allows("/a")
    assert not rules_for(503, b"", "vitrail").allows("/a")
    assert not rules_for(0, b"", "vitrail").allows("/a")


def test_crawl_delay_of_our_group() -> None:
    assert (
        parse(b"User-agent: *\nCrawl-delay: 7\nUser-agent: vitrail\nCrawl-delay: 2.5\nDisallow:", "vitrail").crawl_delay
        == 2.5
    )
    assert parse(b"User-agent: *\nCrawl-delay: 7\nDisallow: /x", "vitrail").crawl_delay == 7
    assert parse(b"User-agent: *\nCrawl-delay: soon\nDisallow: /x", "vitrail").crawl_delay == 0


PATHS = st.text("ab/", max_size=8).map(lambda text: "/" + text)
PATTERNS = st.text("ab/*", max_size=6).map(lambda text: "/" + text)


@settings(max_examples=500)
@given(PATTERNS, st.booleans(), PATHS)
def test_matcher_agrees_with_a_regular_expression(pattern: str, anchored: bool, path: str) -> None:
    expression = "".join(".*" if c == "*" else re.escape(c) for c in pattern)
    expected = re.match(expression + ("$" if anchored else ""), path, re.S) is not None
    assert _matches(pattern + ("$" if anchored else ""), path) is expected


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.text(max_size=30))
def test_any_bytes_parse(body: bytes, path: str) -> None:
    assert parse(b"User-agent: *\nDisallow: /x\n" + body, "vitrail").allows("/robots.txt")
    parse(body, "vitrail").allows("http://h.test/" + path.replace("[", "").replace("]", ""))


def test_many_stars_take_no_time() -> None:
    assert allows("User-agent: *\nDisallow: /" + "a*" * 200 + "b$", "/" + "a" * 5000)
