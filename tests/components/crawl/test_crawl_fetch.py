"""The fetcher against a hostile loopback server: addresses, robots, caps, deadlines, redirects, retries."""

from __future__ import annotations

import asyncio
import email.utils
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from components.crawl.fetch import Fetched, Fetcher, FetchParams, retry_after
from components.web.formats.addresses import RefusedAddress, checked_resolver, is_global
from components.web.rules.policy import PolicyParams

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


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
        if self.path == "/later":
            left = type(self).failures.setdefault("later", 1)
            type(self).failures["later"] = left - 1
            return self.answer(429 if left else 200, PNG, Retry_After="1")
        if self.path == "/endless":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while True:
                self.wfile.write(b"8000\r\n" + (PNG + bytes(0x8000))[:0x8000] + b"\r\n")
        if self.path == "/short":
            return self.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + PNG)
        if self.path == "/long":
            return self.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + PNG + b"HTTP/1.1 200 OK\r\n\r\nsmuggled")
        if self.path == "/negative":
            return self.raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + PNG)
        if self.path == "/nonsense":
            return self.raw(b"\x16\x03\x01 this is not HTTP\r\n\r\n" * 50)
        if self.path == "/headers":
            return self.raw(b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n")
        if self.path == "/many-headers":
            return self.raw(b"HTTP/1.1 200 OK\r\n" + b"X-A: a\r\n" * 200_000 + b"\r\n")
        if self.path == "/declared":
            return self.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + PNG)
        if self.path == "/lies.png":
            return self.answer(200, b"<html>" + bytes(50_000), Content_Type="image/png")
        if self.path == "/image-as-text":
            return self.answer(200, PNG, Content_Type="text/html")
        if self.path == "/noai":
            return self.answer(200, PNG, X_Robots_Tag="otherbot: noindex, vitrail: noai")
        if self.path == "/down":
            return self.answer(503, b"")
        if self.path == "/hangs-up":
            return self.raw(b"")
        return self.answer(404 if self.path == "/gone" else 200, b"hello")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def raw(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        self.close_connection = True

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


def fetch(address: str, *urls: str, image: bool = False, together: bool = True, **changes: object) -> list[Fetched]:
    hosts = dict.fromkeys(("site.test", "other.test", "broken.test"), address)
    settings = {"contact": "a@b.test", "resolve": hosts, "backoff": 0.0, "max_bytes": 100_000, **changes}
    params = FetchParams(policy=PolicyParams(token="vitrail"), **settings)
    Handler.seen.clear()

    async def run() -> list[Fetched]:
        async with Fetcher(params) as fetcher:
            if together:
                return list(await asyncio.gather(*(fetcher.fetch(url, image) for url in urls)))
            return [await fetcher.fetch(url, image) for url in urls]

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
    assert time.monotonic() - began < 30
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


@pytest.mark.parametrize(
    ("path", "outcome", "kept"),
    [
        ("endless", "too-large", 0),
        ("declared", "too-large", 0),  # by its header: not a byte is read
        ("short", "connection", 0),
        ("negative", "ok", len(PNG)),  # no length: until the connection ends, as browsers have it
        ("nonsense", "connection", 0),
        ("headers", "connection", 0),
        ("many-headers", "connection", 0),
        ("hangs-up", "connection", 0),
        ("lies.png", "not-an-image", 0),
        ("image-as-text", "ok", len(PNG)),
        ("noai", "opt-out", 0),
        ("gone", "http-error", 0),
        ("drip", "timeout", 0),
    ],
)
def test_answers_that_lie_or_never_end(address: str, path: str, outcome: str, kept: int) -> None:
    began = time.monotonic()
    (got,) = fetch(address, f"http://site.test/{path}", image=True, retries=0, deadline=1.0)
    assert got.outcome == outcome
    assert time.monotonic() - began < 40
    if outcome == "ok":
        assert len(got.hops[0].body) == kept
    assert all(len(hop.body) <= 100_001 for hop in got.hops)
    # The next one on the same connections is none the worse.
    assert (
        fetch(address, f"http://site.test/{path}", "http://site.test/agent", retries=0, deadline=1.0)[1]
        .hops[0]
        .body.startswith(b"vitrail")
    )


def test_what_follows_the_declared_length_is_nobodys_answer(address: str) -> None:
    for got in fetch(address, *["http://site.test/long", "http://site.test/agent"] * 5, together=False, per_host=1):
        # Whether the surplus is seen in time to call the answer faulty is up to the network.
        assert got.outcome == "ok" or (got.outcome, got.url[-4:]) == ("connection", "long")
        assert all(b"smuggled" not in hop.body and len(hop.body) <= 30 for hop in got.hops)


def test_retry_after_is_waited_for(address: str) -> None:
    Handler.failures.clear()
    began = time.monotonic()
    assert fetch(address, "http://site.test/later", retries=1)[0].outcome == "ok"
    assert time.monotonic() - began > 0.9
    soon = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 95 < retry_after(soon) <= 100
    past = email.utils.formatdate(time.time() - 100, usegmt=True)
    assert [retry_after(text) for text in ("120", past, "soon", "", "-5", "9" * 400, "²")] == [120, 0, 0, 0, 0, 0, 0]


def test_a_host_that_fails_is_left_alone_for_a_while(address: str) -> None:
    urls = ["http://site.test/down"] * 5 + ["http://other.test/a"]
    got = fetch(address, *urls, together=False, retries=0, breaker_faults=3, breaker_rest=60.0)
    assert [r.outcome for r in got] == ["http-error"] * 3 + ["circuit-open"] * 2 + ["ok"]
    assert Handler.seen.count(("site.test", "/down")) == 3
    got = fetch(address, *urls[:5], "http://site.test/a", "http://site.test/a", together=False, retries=0,
                breaker_faults=3, breaker_rest=0.0)  # fmt: skip
    assert [r.outcome for r in got] == ["http-error"] * 5 + ["ok"] * 2  # asked again after its rest, and well again


def test_robots_txt_expires(address: str) -> None:
    fetch(address, *["http://site.test/a"] * 3, together=False, robots_expiry=1e-6)
    assert Handler.seen.count(("site.test", "/robots.txt")) == 3


def test_hosts_are_forgotten_beyond_a_number(address: str) -> None:
    hosts = {f"h{i}.test": address for i in range(30)}

    async def run() -> tuple[set[str], int, int]:
        params = FetchParams(policy=PolicyParams(token="vitrail"), contact="a@b.test", resolve=hosts, hosts_kept=5)
        async with Fetcher(params) as fetcher:
            got = [await fetcher.fetch(f"http://{host}/a") for host in hosts]
            return {r.outcome for r in got}, len(fetcher.hosts), len(fetcher._robots)

    assert asyncio.run(run()) == ({"ok"}, 5, 5)


@pytest.mark.parametrize(
    ("address_", "allowed"),
    [("93.184.216.34", True), ("2606:2800:220:1::1", True), ("127.0.0.1", False), ("10.1.2.3", False),
     ("169.254.169.254", False), ("100.64.0.1", False), ("224.0.0.1", False), ("255.255.255.255", False),
     ("::1", False), ("fe80::1%eth0", False), ("fc00::1", False), ("ff02::1", False), ("::ffff:127.0.0.1", False),
     ("64:ff9b::7f00:1", False), ("64:ff9b::a01:203", False), ("2002:7f00:1::", False)],
)  # fmt: skip
def test_addresses_that_may_be_connected_to(address_: str, allowed: bool) -> None:
    assert is_global(address_) is allowed


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0177.0.0.1", "127.0.0.1.", "[::ffff:127.0.0.1]"])
def test_spellings_of_private_addresses_are_refused(address: str, host: str) -> None:
    port = address.rpartition(":")[2]
    (got,) = fetch(address, f"http://{host}:{port}/a", retries=0)
    assert (got.outcome, got.hops) == ("refused-address", [])
    assert Handler.seen == []


def test_a_name_that_turns_private_is_refused_and_the_checked_address_is_the_one_connected_to(address: str) -> None:
    """DNS rebinding: a global answer first, a private one next; and of a mixed answer only the global part."""

    class Rebinding:
        answers = [["8.8.8.8"], ["127.0.0.1"], ["127.0.0.1", "8.8.4.4"]]

        async def resolve(self, host: str, port: int, family: object) -> list[dict[str, object]]:
            return [{"hostname": host, "host": ip, "port": port} for ip in self.answers.pop(0)]

    async def run() -> list[object]:
        resolver, found = checked_resolver({}, Rebinding()), []
        for _ in range(3):
            try:
                found.append([entry["host"] for entry in await resolver.resolve("h.test", 80)])
            except RefusedAddress:
                found.append("refused")
        return found

    assert asyncio.run(run()) == [["8.8.8.8"], "refused", ["8.8.4.4"]]
