"""The fetcher against a hostile loopback server: addresses, robots, caps, deadlines, redirects, retries."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from components.curate.fetch import Fetched, Fetcher, FetchParams
from components.curate.policy import PolicyParams


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str]] = []
    failures: dict[str, int] = {}

    def do_GET(self) -> None:
        type(self).seen.append((self.headers["Host"], self.path))
        if self.path == "/robots.txt":
            text = "User-agent: vitrail\nDisallow: /private"
            if self.headers["Host"] == "broken.test":
                return self.answer(503, b"")
            return self.answer(200, text.encode())
        if self.path == "/agent":
            return self.answer(200, self.headers["User-Agent"].encode())
        if self.path.startswith("/to?"):
            return self.answer(302, b"", Location=self.path[4:])
        if self.path == "/loop":
            return self.answer(302, b"", Location="/loop")
        if self.path == "/flaky":
            left = type(self).failures.setdefault("flaky", 2)
            type(self).failures["flaky"] = left - 1
            return self.answer(503 if left else 200, b"ok", Retry_After="0")
        if self.path == "/big":
            return self.answer(200, bytes(300_000))
        if self.path == "/drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
            return None
        return self.answer(404 if self.path == "/gone" else 200, b"hello")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client had enough, as the tests mean it to


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(address: str, *urls: str, **changes: object) -> list[Fetched]:
    hosts = dict.fromkeys(("site.test", "other.test", "broken.test"), address)
    settings = {"contact": "a@b.test", "resolve": hosts, "backoff": 0.0, "max_bytes": 100_000, **changes}
    params = FetchParams(policy=PolicyParams(token="vitrail"), **settings)
    Handler.seen.clear()

    async def run() -> list[Fetched]:
        async with Fetcher(params) as fetcher:
            return list(await asyncio.gather(*(fetcher.fetch(url) for url in urls)))

    return asyncio.run(run())


def test_identifies_itself_and_keeps_the_url(address: str) -> None:
    (got,) = fetch(address, "http://site.test/agent")
    assert got.outcome == "ok"
    assert got.hops[0].body == b"vitrail/0.1 (+a@b.test)"
    assert got.hops[0].url == "http://site.test/agent"


def test_robots_is_asked_once_a_host_and_obeyed(address: str) -> None:
    results = fetch(address, *(f"http://site.test/{name}" for name in ("a", "b", "private/c")))
    assert [r.outcome for r in results] == ["ok", "ok", "robots"]
    assert Handler.seen.count(("site.test", "/robots.txt")) == 1
    assert ("site.test", "/private/c") not in Handler.seen
    assert fetch(address, "http://broken.test/a", retries=0)[0].outcome == "robots"  # 5xx: nothing is allowed


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://10.0.0.1/x", "http://169.254.169.254/latest/meta-data", "http://[::1]/",
     "http://localhost/", "http://0.0.0.0/", "http://192.168.1.1/"],
)  # fmt: skip
def test_addresses_that_are_not_global_are_refused(address: str, url: str) -> None:
    got = fetch(address, url, retries=0)[0]
    assert got.outcome in ("robots", "refused-address")  # robots.txt could not be had, so nothing is allowed
    assert got.hops == []
    port = address.rpartition(":")[2]
    assert fetch(address, f"http://127.0.0.1:{port}/x", retries=0)[0].hops == []
    assert Handler.seen == []


def test_redirects_are_checked_at_every_step(address: str) -> None:
    ok, inside, scheme, private, loop = fetch(
        address,
        "http://site.test/to?http://other.test/a",
        f"http://site.test/to?http://{address}/a",
        "http://site.test/to?file:///etc/passwd",
        "http://site.test/to?http://other.test/private/x",
        "http://site.test/loop",
        retries=0,
    )
    assert (ok.outcome, [hop.status for hop in ok.hops]) == ("ok", [302, 200])
    assert list(ok.robots) == ["http://site.test", "http://other.test"]
    assert inside.outcome in ("robots", "refused-address")
    assert scheme.outcome == "http-error"
    assert private.outcome == "robots"
    assert (loop.outcome, len(loop.hops)) == ("redirects", 6)


def test_bytes_and_time_are_capped(address: str) -> None:
    big, gone = fetch(address, "http://site.test/big", "http://site.test/gone")
    assert (big.outcome, len(big.hops[0].body), big.hops[0].cut) == ("too-large", 100_000, "length")
    assert gone.outcome == "http-error"
    began = time.monotonic()
    (drip,) = fetch(address, "http://site.test/drip", deadline=0.4, retries=0)
    assert time.monotonic() - began < 3
    assert (drip.outcome, drip.hops[0].cut) == ("timeout", "time")


def test_faults_that_pass_are_retried(address: str) -> None:
    Handler.failures.clear()
    assert fetch(address, "http://site.test/flaky", retries=2)[0].outcome == "ok"
    Handler.failures.clear()
    assert fetch(address, "http://site.test/flaky", retries=1)[0].outcome == "http-error"


def test_a_delay_spaces_requests_to_one_host(address: str) -> None:
    began = time.monotonic()
    fetch(address, *(f"http://site.test/{i}" for i in range(4)), delay=0.15)
    assert time.monotonic() - began > 0.55  # robots.txt and four more: four gaps
