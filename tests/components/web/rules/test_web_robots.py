"""robots.txt by RFC 9309: its own examples, and a brute-force matcher as the reference."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.web.formats.warc import Response
from components.web.rules import robots_match
from components.web.rules.robots import MAX_BYTES, Rules, heard, parse, rules_for
from components.web.rules.robots_match import matches


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
    assert matches(pattern + ("$" if anchored else ""), path) is expected


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.text(max_size=30))
def test_any_bytes_parse(body: bytes, path: str) -> None:
    assert parse(b"User-agent: *\nDisallow: /x\n" + body, "vitrail").allows("/robots.txt")
    parse(body, "vitrail").allows("http://h.test/" + path.replace("[", "").replace("]", ""))


def test_many_stars_take_no_time() -> None:
    assert allows("User-agent: *\nDisallow: /" + "a*" * 200 + "b$", "/" + "a" * 5000)


@pytest.mark.parametrize(
    ("rule", "path", "expected"),
    [
        (b"/a-%2A.html", "/a-*.html", False),  # RFC 9309, section 2.2.3
        (b"/a-%2A.html", "/a-%2a.html", False),
        (b"/a-%2A.html", "/a-b.html", True),
        (b"/cost-%24", "/cost-$/x", False),
        (b"/cost-%24", "/cost-%24", False),
        (b"/cost$s", "/cost%24s", False),  # a dollar that does not end the rule is one
        (b"/x$", "/xy", True),
        (b"/priv\xe9", "/priv%E9/x", False),  # raw Latin-1
        (b"/priv\xc3\xa9", "/priv%c3%a9/x", False),  # raw UTF-8
        (b"/a b", "/a%20b", False),
        (b'/"q"|<z>^`{}', "/%22q%22%7C%3Cz%3E%5E%60%7B%7D", False),
        (b'/"q"|^', "/%22q%22|^", False),
        (b"/s?a='b'", "/s?a=%27b%27", False),
        (b"/s?u=https://h.test", "/s?u=https%3A%2F%2Fh.test", False),  # the RFC's table
        (b"/s?u=https%3A%2F%2Fh.test", "/s?u=https://h.test", False),
        (b"/*/feed/", "/s?u=/x/feed/", False),
        (b"/a%2Fb", "/a/b", True),
        (b"/a?b", "/a%3Fb", True),
        (b"/*?$", "/a?", False),
        (b"/a\xe2\x80\xa8b", "/a%E2%80%A8b", False),  # U+2028 ends no line
        (b"/a\x0cb", "/a%0Cb", False),
    ],
)
def test_one_spelling_for_each_octet(rule: bytes, path: str, expected: bool) -> None:
    assert parse(b"User-agent: *\nDisallow: " + rule + b"\n", "vitrail").allows(f"http://h.test{path}") is expected


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_lines_end_as_the_rfc_says(end: bytes) -> None:
    rules = parse(end.join([b"User-agent: *", b"Disallow: /a\x0b", b"Disallow: /b"]), "vitrail")
    assert not rules.allows("/b")
    assert not rules.allows("/a")


def test_a_robots_txt_in_utf_16_is_read() -> None:
    assert not parse("User-agent: *\nDisallow: /é".encode("utf-16"), "vitrail").allows("/%C3%A9")


def test_a_rule_cut_by_the_limit_is_left_out() -> None:
    body = b"User-agent: *\nDisallow: /first\n" + b"#" * (MAX_BYTES - 60) + b"\nDisallow: /*secret$"
    rules = parse(body[:MAX_BYTES], "vitrail")
    assert not rules.allows("/first")
    assert rules.allows("/anything")


RULES = st.lists(
    st.tuples(st.booleans(), st.builds(lambda p, d: p + d, PATTERNS, st.sampled_from(["", "$"]))), max_size=12
)


@settings(max_examples=500)
@given(RULES, PATHS)
def test_the_index_agrees_with_asking_every_rule(rules: list[tuple[bool, str]], path: str) -> None:
    fitting = [(len(re.sub(r"\*+", "*", p)), allow) for allow, p in rules if matches(p, path)]
    assert Rules(tuple(rules)).allows(path) is (max(fitting)[1] if fitting else True)


@pytest.mark.parametrize("rule", ["/a/b{}/c", "/*x{}/c", "/*aaaa{}*b", "/*a*{}a*a$"])
def test_no_robots_txt_makes_an_address_dear(rule: str) -> None:
    """Counted, not timed: characters searched for one address, whatever the rules and the address are."""
    rules = parse(("User-agent: *\n" + "\n".join(f"Disallow: {rule}".format(i) for i in range(29_000))).encode(), "x")
    searched = 0

    def counted(pattern: str, path: str) -> bool:
        nonlocal searched
        searched += len(path)
        return matches(pattern, path)

    index = rules.ready()._index
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robots_match, "matches", counted)
        for path in ("/a/b77/c", "/x/x28/c?" + "a" * 80, "/" + "a" * 8000, "/" + "aaaa1" * 1600):
            searched = 0
            rules.verdict(path)
            assert searched <= robots_match.MAX_WORK
            assert len(index._lengths) < 1100  # places of a path that are looked up
    assert not rules.allows(rule.replace("*", "").replace("$", "").format(77) + ("b" if rule.endswith("b") else ""))


def test_an_answer_that_broke_off_says_nothing() -> None:
    def answer(body: bytes, cut: bool = False) -> Response:
        return Response("http://h.test/robots.txt", 200, {}, body, cut, 0)

    assert heard(answer(b"User-agent: *")) == (200, b"User-agent: *")
    assert heard(answer(b"User-agent: *", cut=True))[0] == 0
    assert heard(answer(b"#" * (MAX_BYTES + 9), cut=True))[0] == 200  # only its size cut it
