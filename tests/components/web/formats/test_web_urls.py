"""One address for what is judged, recorded and sent: the URL Standard's own cases, and nothing moves twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.web.formats.urls import host_of, normal_host, origin, resolve, target

BASE = "http://site.test/a/b.html?q"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("%2e%2e/private/x.jpg", "http://site.test/private/x.jpg"),
        (".%2E/x", "http://site.test/x"),
        ("/public/%2e%2e/private/x.jpg", "http://site.test/private/x.jpg"),
        ("a%2Fb", "http://site.test/a/a%2Fb"),
        ("\\c\\d.png", "http://site.test/c/d.png"),
        ("\\\\cdn.test\\x", "http://cdn.test/x"),
        ("x?s=a%2Fb+c%20d&t='\"<>|^`", "http://site.test/a/x?s=a%2Fb+c%20d&t=%27%22%3C%3E|^`"),
        ("x|^`{}", "http://site.test/a/x|%5E%60%7B%7D"),
        ("?", "http://site.test/a/b.html?"),
        ("x?", "http://site.test/a/x?"),
        ("c//d/./e/", "http://site.test/a/c//d/e/"),
        ("%zz", "http://site.test/a/%zz"),
        ("é?é", "http://site.test/a/%C3%A9?%C3%A9"),
        ("\ud800", "http://site.test/a/%EF%BF%BD"),
        ("x\x00y", "http://site.test/a/x%00y"),
        ("ht\ntp://H.test:80/\tx#f", "http://h.test/x"),
        ("https:///h.test/x", "https://h.test/x"),
        ("https:h.test", "https://h.test/"),
        ("http:x.png", "http://site.test/a/x.png"),
        ("http://straße.de/", "http://xn--strae-oqa.de/"),
        ("http://ＥＸＡＭＰＬＥ．ｃｏｍ/", "http://example.com/"),
        ("http://a%41.test/", "http://aa.test/"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://2130706433/", "http://127.0.0.1/"),
        ("http://[::FFFF:1.2.3.4]/", "http://[::ffff:102:304]/"),
        ("http://h.test?q", "http://h.test/?q"),
        ("http://user:pw@h.test/", ""),
        ("http://@h.test/", "http://h.test/"),
        ("http://h.test:99999/", ""),
        ("http://a b.test/", ""),
        ("data:image/png,x", ""),
        ("x" * 8193, ""),
        ("é" * 3000, ""),  # percent-encoded it is too long
    ],
)
def test_addresses_as_a_browser_sends_them(address: str, expected: str) -> None:
    assert resolve(BASE, address) == expected


@pytest.mark.parametrize("base", ["", "nonsense", "http://["])
def test_a_whole_address_needs_no_base(base: str) -> None:
    assert resolve(base, "http://H.test") == "http://h.test/"
    assert resolve(base, "x.png") == ""


BITS = st.lists(
    st.sampled_from([*'aZ/.:?#;&=%@ \t\\[]é~,"<|^\x00', "..", "//", "http://", "%2e", "%2F", "h.test/"]), max_size=12
)


@settings(max_examples=300, deadline=None)
@given(BITS, BITS)
def test_a_normal_address_stays_as_it_is(base: list[str], address: list[str]) -> None:
    for page in ("".join(base), f"http://h.test/{''.join(base)}"):
        url = resolve(page, "".join(address))
        if url:
            assert resolve("", url) == resolve(BASE, url) == url
            assert url.isascii()
            assert origin(url) + target(url) == url
            assert target(url).startswith("/")


def test_hosts() -> None:
    assert normal_host("Straße.DE") == "xn--strae-oqa.de"
    assert [normal_host(text) for text in ("a/b", "a@b", "a?b", "a b", "")] == [""] * 5
    assert host_of("HTTP://H.test:81\\x") == "h.test"
    assert host_of("nonsense") == ""
