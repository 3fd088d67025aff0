"""Live answers that browsers accept: odd heads, long ones, coded pages; and what one of them says about its host."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest
from raw_server import answer, raw_server

from components.crawl.fetch import Fetched, Fetcher, FetchParams
from components.crawl.spider import CrawlParams, crawl
from components.images.sandbox import SandboxParams
from components.web.formats.http_head import MAX_HEAD
from components.web.rules.policy import PolicyParams

PNG = b"\x89PNG\r\n\x1a\n" + bytes(92)
LENGTH = b"Content-Length: 100"
CHUNKS = b"64\r\n" + PNG + b"\r\n0\r\n\r\n"


def params(address: str, **changes: object) -> FetchParams:
    settings = {"contact": "a@b.test", "resolve": {"site.test": address}, "backoff": 0.0, "retries": 0, **changes}
    return FetchParams(policy=PolicyParams(token="vitrail"), **settings)


def fetch(address: str, *paths: str, image: bool = True, **changes: object) -> list[Fetched]:
    async def run() -> list[Fetched]:
        async with Fetcher(params(address, **changes)) as fetcher:
            return [await fetcher.fetch(f"http://site.test{path}", image) for path in paths]

    return asyncio.run(run())


GOOD = {
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Type: image/png\n" + LENGTH + b"\n\n" + PNG,
    "mixed line ends": b"HTTP/1.1 200 OK\r\nX: a\n" + LENGTH + b"\r\n\n" + PNG,
    "CR CR LF": b"HTTP/1.1 200 OK\r\r\nX: a\r\r\n" + LENGTH + b"\r\r\n\r\r\n" + PNG,
    "a CR alone": b"HTTP/1.1 200 OK\r\nX: y\rZ: z\r\n" + LENGTH + b"\r\n\r\n" + PNG,
    "9 KB": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 9000 + b"\r\n" + LENGTH + b"\r\n\r\n" + PNG,
    "300 headers": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 300 + LENGTH + b"\r\n\r\n" + PNG,
    "names that are none": b"HTTP/1.1 200 OK\nX Y: a\nnone\n: x\nX\xc3\xa9: a\nX : x\n" + LENGTH + b"\r\n\r\n" + PNG,
    "one length twice": b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + LENGTH + b", 100\r\n\r\n" + PNG,
    "an empty length": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n" + PNG,
    "folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n" + LENGTH + b"\r\n\r\n" + PNG,
    "control characters": b"HTTP/1.1 200 OK\r\nX: a\0b\x01\r\n" + LENGTH + b"\r\n\r\n" + PNG,
    "an odd first line": b"\r\nhttp/1.1  200\r\n" + LENGTH + b"\r\n\r\n" + PNG,
    "HTTP/2 by name": b"HTTP/2 200 OK\r\n" + LENGTH + b"\r\n\r\n" + PNG,
    "chunks and a length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + LENGTH + b"\r\n\r\n" + CHUNKS,
    "chunks, an LF": b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n" + CHUNKS.replace(b"\r\n", b"\n", 1),
    "chunks, all LF": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\n" + PNG + b"\n0\n\n",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +100\r\nConnection: close\r\n\r\n" + PNG,
    "a length in words": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + PNG,
    "identity": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n" + LENGTH + b"\r\n\r\n" + PNG,
    "early hints": b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n\r\n" + PNG,
    "no length": b"HTTP/1.0 200 OK\r\n\r\n" + PNG,
    "two types": b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Type: image/png\r\n" + LENGTH + b"\r\n\r\n" + PNG,
}  # fmt: skip


def test_answers_that_browsers_accept() -> None:
    paths = {f"/{number}": block for number, block in enumerate(GOOD.values())}
    with raw_server(paths) as (_, address):
        found = fetch(address, *paths)
    ends = {name: (one.outcome, *(hop.body for hop in one.hops)) for name, one in zip(GOOD, found, strict=True)}
    assert ends == dict.fromkeys(GOOD, ("ok", PNG))


def test_a_head_that_comes_byte_by_byte() -> None:
    def drips(connection: object) -> None:
        for byte in GOOD["folded"][:90]:
            connection.sendall(bytes([byte]))  # type: ignore[attr-defined]
        connection.sendall(GOOD["folded"][90:])  # type: ignore[attr-defined]

    with raw_server({"/a": drips}) as (_, address):
        (found,) = fetch(address, "/a")
    assert (found.outcome, found.hops[0].body) == ("ok", PNG)


BAD = {
    "/differ": b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\nContent-Length: 50\r\n\r\n" + PNG,
    "/none": b"\x16\x03\x01 no HTTP\r\n\r\n",
    "/long": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * (MAX_HEAD + 1) + b"\r\n\r\n",
    "/many": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * MAX_HEAD + b"\r\n",
    "/interim": b"HTTP/1.1 103 Early\r\n\r\n" * 100 + b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n\r\n" + PNG,
    "/upgrade": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + PNG,
    "/chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + PNG,
    "/short": b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + PNG,
}


def test_odd_answers_say_nothing_about_their_host() -> None:
    with raw_server({**BAD, "/good": answer(PNG)}) as (_, address):
        found = fetch(address, *BAD, "/good", breaker_faults=2)
    assert [one.outcome for one in found] == ["connection"] * len(BAD) + ["ok"]
    assert all(not one.hops for one in found[:-1])


@pytest.mark.parametrize("image", [True, False])
def test_bodies_of_redirects_are_not_kept(image: bool) -> None:
    hops = {f"/{n}": answer(bytes(500_000), f"Location: /{n + 1}", status="302 Found") for n in range(5)}
    with raw_server({**hops, "/5": answer(PNG)}) as (_, address):
        (found,) = fetch(address, "/0", image=image)
    assert [len(hop.body) for hop in found.hops] == [0, 0, 0, 0, 0, 100]
    assert found.outcome == "ok"


def test_pages_that_are_coded_badly_named_or_not_named_give_their_links(tmp_path: Path) -> None:
    pages = {
        "/": answer(gzip.compress(b"<a href=untyped><a href=twice><a href=utf16><a href=lf>"),
                    "Content-Type: text/html",                    "Content-Encoding: gzip"),
        "/untyped": answer(b"<!doctype html><img src=1.png>"),
        "/twice": answer(b"<img src=2.png>", "Content-Type: nonsense", "Content-Type: text/html"),
        "/utf16": answer(b"<meta charset=utf-16><img src=3.png>", "Content-Type: text/html"),
        "/lf": b"HTTP/1.1 200 OK\nContent-Type: text/html\n\n<img src=4.png>",
        **{f"/{n}.png": answer(PNG) for n in range(1, 5)},
    }  # fmt: skip
    with raw_server(pages) as (_, address):
        settings = CrawlParams(fetch=params(address), sandbox=SandboxParams(enabled=False))
        counts = asyncio.run(crawl(["http://site.test/"], frozenset(["site.test"]), settings, tmp_path / "x.warc.gz"))
    assert counts == {"image-ok": 4, "page-ok": 5}
