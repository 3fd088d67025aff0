"""Image links the way a browser finds them: each rule a case."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.web.formats.links import parse_page, parse_srcset
from components.web.formats.opt_out import header_opts_out
from components.web.formats.urls import resolve

PAGE = "http://site.test/a/b.html"


def urls(body: str, head: str = "", page: str = PAGE) -> list[str]:
    html = f"<!doctype html><html><head>{head}</head><body>{body}</body></html>"
    return [link.url for link in parse_page(html, page).images]


@pytest.mark.parametrize(
    ("src", "expected"),
    [
        ("c.png", "http://site.test/a/c.png"),
        ("/c.png", "http://site.test/c.png"),
        ("../c.png", "http://site.test/c.png"),
        ("//cdn.test/c.png", "http://cdn.test/c.png"),
        ("https://CDN.test/C.png", "https://cdn.test/C.png"),
        (" \n c.png\t", "http://site.test/a/c.png"),
        ("my cat.png", "http://site.test/a/my%20cat.png"),
        ("c.png#part", "http://site.test/a/c.png"),
        ("c.png?x=1&amp;y=2", "http://site.test/a/c.png?x=1&y=2"),
        ("http://h.test", "http://h.test/"),
    ],
)
def test_src_resolves(src: str, expected: str) -> None:
    assert urls(f'<img src="{src}">') == [expected]


@pytest.mark.parametrize(
    "src", ["", " ", "data:image/gif;base64,AAAA", "blob:http://a/1", "about:blank", "javascript:x", "file:///etc/passwd",
            "ftp://a.test/x.png", "http://", "http://[::1", "http://a.test:99999/x", "http://user:pw@a.test/x.png"]
)  # fmt: skip
def test_unusable_addresses_are_counted_not_returned(src: str) -> None:
    page = parse_page(f'<img src="{src}">', PAGE)
    assert page.images == ()
    assert page.skipped == 1


def test_only_the_first_base_counts_and_it_resolves_against_the_page() -> None:
    assert urls('<img src="c.png">', '<base href="/x/"><base href="/y/">') == ["http://site.test/x/c.png"]
    assert urls('<img src="c.png">', '<base target="_top"><base href="z/">') == ["http://site.test/a/z/c.png"]
    assert urls('<img src="c.png">', '<base href="//other.test/">') == ["http://other.test/c.png"]
    assert urls('<img src="c.png">', '<base href="data:text/html,x">') == ["http://site.test/a/c.png"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.png", [("a.png", "x", 1.0)]),
        ("a.png 1x, b.png 2x", [("a.png", "x", 1.0), ("b.png", "x", 2.0)]),
        ("a.png 100w,b.png 200w", [("a.png", "w", 100.0), ("b.png", "w", 200.0)]),
        ("a,b.png 2x, c.png", [("a,b.png", "x", 2.0), ("c.png", "x", 1.0)]),
        ("a.png,, b.png", [("a.png", "x", 1.0), ("b.png", "x", 1.0)]),
        (" , a.png 1.5x ", [("a.png", "x", 1.5)]),
        ("a.png 100w 50h", [("a.png", "w", 100.0)]),
        ("a.png 2q, b.png -1x, c.png 1x 2x, d.png 3x", [("d.png", "x", 3.0)]),
        ("a.png (1x, 2x), b.png 2x", [("b.png", "x", 2.0)]),
        ("a.png 1e3x", [("a.png", "x", 1000.0)]),
        ("", []),
    ],
)  # fmt: skip
def test_srcset_by_the_standard(text: str, expected: list[tuple[str, str, float]]) -> None:
    assert parse_srcset(text) == expected


def test_one_address_an_img_the_largest_candidate() -> None:
    assert urls('<img src="s.png" srcset="m.png 300w, l.png 900w, t.png 100w">') == ["http://site.test/a/l.png"]
    assert urls('<img src="s.png" srcset="h.png 0.5x">') == ["http://site.test/a/s.png"]
    assert urls('<img src="s.png" srcset="h.png 2x">') == ["http://site.test/a/h.png"]


def test_picture_sources_are_alternatives_of_one_image() -> None:
    body = (
        '<picture><source type="image/avif" srcset="x.avif 2000w"><source srcset="l.webp 900w, s.webp 10w"'
        ' type="image/webp"><img src="f.jpg" alt="A cat"></picture>'
    )
    assert urls(body) == ["http://site.test/a/l.webp"]
    assert urls('<picture><source srcset="a.webp"><img src="f.jpg"></picture>') == ["http://site.test/a/f.jpg"]
    assert parse_page(body, PAGE).images[0].alt == "A cat"


@pytest.mark.parametrize("name", ["data-src", "data-original", "data-lazy-src", "data-lazy"])
@pytest.mark.parametrize("src", ["", 'src="data:image/gif;base64,R0"', 'src="/img/spacer.gif"', 'src="blank.png?v=2"'])
def test_lazy_attributes_go_before_a_placeholder(name: str, src: str) -> None:
    assert urls(f'<img {src} {name}="real.jpg">') == ["http://site.test/a/real.jpg"]


def test_lazy_srcset_and_a_real_src() -> None:
    assert urls('<img data-srcset="s.jpg 1x, l.jpg 2x">') == ["http://site.test/a/l.jpg"]
    assert urls('<img src="real.jpg" data-src="other.jpg">') == ["http://site.test/a/real.jpg"]


def test_noscript_is_read_and_the_same_image_is_one_link() -> None:
    body = '<img data-src="a.jpg"><noscript><img src="a.jpg"></noscript><noscript><img src="b.jpg"></noscript>'
    assert urls(body) == ["http://site.test/a/a.jpg", "http://site.test/a/b.jpg"]


def test_trackers_and_drawings_carry_their_reason() -> None:
    page = parse_page(
        '<img src="t.gif" width="1" height=1><img src="logo.svg?v=1"><img src="wide.gif" width=1px>', PAGE
    )
    assert [link.reason for link in page.images] == ["declared-tracker", "vector", "declared-tracker"]


@pytest.mark.parametrize(
    ("head", "opt_out"),
    [
        ('<meta name="robots" content="noai">', True),
        ('<meta name="ROBOTS" content="NoIndex, follow">', True),
        ('<meta name="robots" content="noimageai,noml">', True),
        ('<meta name="vitrail" content="noimageindex">', True),
        ('<meta name="otherbot" content="noai">', False),
        ('<meta name="robots" content="nofollow">', False),
        ('<meta name="tdm-reservation" content="1">', True),
        ('<meta name="tdm-reservation" content="0">', False),
        ("", False),
    ],
)
def test_meta_robots(head: str, opt_out: bool) -> None:
    assert parse_page(f"<head>{head}</head>", PAGE).opt_out is opt_out


def test_nofollow_and_anchors() -> None:
    page = parse_page(
        '<meta name=robots content=nofollow><a href="x#y">1</a><a href="x">2</a><a href="mailto:a@b">', PAGE
    )
    assert page.nofollow
    assert page.anchors == ("http://site.test/a/x",)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("noai", True), ("index, NoImageAI", True), ("vitrail: noindex", True), ("otherbot: noai", False),
     ("otherbot: noai, noml", False), ("otherbot: noai, vitrail: noml", True),
     ("max-snippet: 10, noai", True), ("", False)],
)  # fmt: skip
def test_x_robots_tag(value: str, expected: bool) -> None:
    assert header_opts_out(value, "") is expected
    assert header_opts_out("", "1")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_srcset_never_fails_and_addresses_come_from_the_text(text: str) -> None:
    for address, kind, number in parse_srcset(text):
        assert address in text
        assert kind in "wx"
        assert number >= 0


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80), st.text(max_size=40))
def test_pages_of_any_text_give_only_absolute_http_addresses(body: str, address: str) -> None:
    page = parse_page(f'{body}<img src="{address}" srcset="{body}"><a href="{address}">', PAGE)
    for url in [*(link.url for link in page.images), *page.anchors]:
        assert url.startswith(("http://", "https://"))
        assert resolve(PAGE, url) == url
