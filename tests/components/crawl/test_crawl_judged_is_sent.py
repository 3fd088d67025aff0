"""What is judged is what is sent and recorded; what forbids does so before a byte is fetched."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from pathlib import Path

import pytest
from raw_server import answer, drip, raw_server

from components.crawl.fetch import Fetched, Fetcher, FetchParams
from components.crawl.spider import CrawlParams, crawl
from components.images.sandbox import SandboxParams
from components.web.formats.warc import Faults, read_warc
from components.web.rules.policy import PolicyParams

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
HTML = "Content-Type: text/html"


def params(address: str, **changes: object) -> FetchParams:
    hosts = dict.fromkeys(("site.test", "xn--strae-oqa.de"), address)
    settings = {"contact": "a@b.test", "resolve": hosts, "backoff": 0.0, "retries": 0, **changes}
    return FetchParams(policy=PolicyParams(token="vitrail"), **settings)


def fetch(address: str, *urls: str, image: bool = False, **changes: object) -> list[Fetched]:
    async def run() -> list[Fetched]:
        async with Fetcher(params(address, **changes)) as fetcher:
            return [await fetcher.fetch(url, image) for url in urls]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://site.test/a%2Fb.png", "/a%2Fb.png"),
        ("http://site.test/a?sig=x%2By%2f%3D%3d+z&t=a%20b", "/a?sig=x%2By%2f%3D%3d+z&t=a%20b"),
        ("http://site.test/a?", "/a?"),
        ("http://site.test", "/"),
        ("http://site.test?x", "/?x"),
        ("http://site.test//a//b", "//a//b"),
        ("http://site.test/%7Ea/%41;p=%3B,:@!$&'()*+", "/%7Ea/%41;p=%3B,:@!$&'()*+"),
        ("http://site.test/x?a='\"<>|^`{}", "/x?a=%27%22%3C%3E|^`{}"),
        ("http://site.test/%zz%", "/%zz%"),
        ("http://site.test/é?é", "/%C3%A9?%C3%A9"),
        ("http://site.test\\a\\..\\b", "/b"),
        ("http://site.test/x/%2e%2E/y", "/y"),
        ("http://site.test/a[1].png?b[]=[2]", "/a[1].png?b[]=[2]"),
        ("http://site.test/a#f", "/a"),
        ("http://straße.de/a", "/a"),
    ],
)
def test_the_target_sent_is_the_one_recorded(url: str, target: str) -> None:
    with raw_server({target: answer(b"x")}) as (raw, address):
        (got,) = fetch(address, url)
        assert raw.targets[1:] == [target]
        assert got.outcome == "ok"
        assert got.hops[0].url in (f"http://site.test{target}", f"http://xn--strae-oqa.de{target}")
        assert set(raw.hosts) <= {"site.test", "xn--strae-oqa.de"}


@pytest.mark.parametrize(
    "path", ["/public/%2e%2e/private/x", "/public/..%2fx/../../private/x", "/public\\..\\private/x"]
)
def test_no_spelling_passes_robots_by(path: str) -> None:
    robots = answer(b"User-agent: *\nDisallow: /private/\n")
    moved = answer(b"", f"Location: {path}", status="302 Found")
    with raw_server({"/robots.txt": robots, "/moved": moved}) as (raw, address):
        got = fetch(address, f"http://site.test{path}", "http://site.test/moved")
        assert [one.outcome for one in got] == ["robots", "robots"]
        assert raw.targets == ["/robots.txt", "/moved"]


RULES = b"User-agent: *\nDisallow: /private\n"


def deflated(data: bytes) -> bytes:
    bare = zlib.compressobj(wbits=-15)
    return bare.compress(data) + bare.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [("gzip", gzip.compress(RULES)), ("x-gzip", gzip.compress(RULES)), ("deflate", zlib.compress(RULES)),
     ("deflate", deflated(RULES)), ("gzip", gzip.compress(b"User-agent: *\n") + gzip.compress(RULES[14:])),
     ("gzip, gzip", gzip.compress(gzip.compress(RULES))), ("identity", RULES), ("gzip", RULES)],
)  # fmt: skip
def test_a_coded_robots_txt_is_read_while_fetching(coding: str, body: bytes) -> None:
    robots = answer(body, f"Content-Encoding: {coding}")
    with raw_server({"/robots.txt": robots, "/a": answer(b"x")}) as (raw, address):
        got = fetch(address, "http://site.test/private", "http://site.test/a")
        assert [one.outcome for one in got] == ["robots", "ok"]
        assert raw.targets == ["/robots.txt", "/a"]


@pytest.mark.parametrize("headers", ["Content-Encoding: br", "Content-Encoding: gzip"])
def test_a_robots_txt_whose_coding_cannot_be_undone_forbids_all(headers: str) -> None:
    body = gzip.compress(RULES * 100)[:60]
    with raw_server({"/robots.txt": answer(body, headers), "/a": answer(b"x")}) as (raw, address):
        assert fetch(address, "http://site.test/a")[0].outcome == "robots"
        assert raw.targets == ["/robots.txt"]


def test_a_robots_txt_that_drips_past_the_deadline_forbids_all_and_says_so_in_the_warc(tmp_path: Path) -> None:
    with raw_server({"/robots.txt": drip(b"User-agent: *\nAllow: /\n", 3), "/a": answer(b"x")}) as (raw, address):
        (got,) = fetch(address, "http://site.test/a", deadline=0.3)
        assert (got.outcome, got.hops) == ("timeout", [])
        assert raw.targets == ["/robots.txt"]
    hop = got.robots["http://site.test"]
    assert hop is not None
    assert hop.cut == "time"


@pytest.mark.parametrize(
    "headers",
    [["X-Robots-Tag: nosnippet", "X-Robots-Tag: noai"],
     ["X-Robots-Tag: unavailable_after: Fri, 25 Jun 2100 15:00 PST, noai"],
     ["X-Robots-Tag: otherbot: nofollow", "X-Robots-Tag: noimageai"], ["TDM-Reservation: 0", "TDM-Reservation: 1"]],
)  # fmt: skip
def test_a_second_header_forbids_before_the_body_is_read(headers: list[str]) -> None:
    with raw_server({"/a.png": answer(PNG, *headers)}) as (_, address):
        (got,) = fetch(address, "http://site.test/a.png", image=True)
        assert (got.outcome, got.hops[0].body) == ("opt-out", b"")


def test_a_page_that_opts_out_forbids_its_images_before_they_are_asked_for(tmp_path: Path) -> None:
    pages = {
        "/": answer(b"<a href=meta><a href=tag><img src=free.png><img src=both.png><img src=head.png>", HTML),
        "/meta": answer(b"<meta name=robots content=noai><img src=meta.png><img src=both.png>", HTML),
        "/tag": answer(b"<img src=tag.png>", HTML, "X-Robots-Tag: nosnippet", "X-Robots-Tag: noai"),
        "/free.png": answer(PNG), "/head.png": answer(PNG, "X-Robots-Tag: x", "X-Robots-Tag: noai"),
        "/both.png": answer(PNG), "/meta.png": answer(PNG), "/tag.png": answer(PNG),
    }  # fmt: skip
    out = tmp_path / "x.warc.gz"
    with raw_server(pages) as (raw, address):
        settings = CrawlParams(fetch=params(address), sandbox=SandboxParams(enabled=False))
        counts = asyncio.run(crawl(["HTTP://site.test"], frozenset(["site.test"]), settings, out))
    assert not {"/meta.png", "/tag.png"} & set(raw.targets)
    assert counts["image-ok"] >= 1
    bodies = {response.url: response.body for response in read_warc(out, Faults(), 10_000)}
    assert bodies["http://site.test/free.png"] == PNG
    assert bodies["http://site.test/head.png"] == b""
