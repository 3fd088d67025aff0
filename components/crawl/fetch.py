"""One polite, bounded HTTP fetch: http(s) only, addresses checked when resolved, bytes and time capped, robots first.

The connection goes to the very address that was checked (:mod:`components.web.formats.addresses`); each redirect is a
fetch of its own with all checks again. HTTP/1.1 only: aiohttp, which pins the checked address, speaks no HTTP/2.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import functools
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from components.crawl.hosts import Host, Hosts
from components.images.decode import HEAD_BYTES, looks_like_image
from components.params import Strict
from components.web.formats.addresses import RefusedAddress, checked_resolver, is_refused_literal
from components.web.formats.http_head import MAX_FIELDS, MAX_HEAD
from components.web.formats.opt_out import header_opts_out
from components.web.formats.urls import origin, resolve, target
from components.web.formats.warc import Hop
from components.web.rules.policy import Policy, PolicyParams
from components.web.rules.robots import MAX_BYTES, Rules, heard, rules_for

OUTCOMES = (
    "ok",
    "http-error",  # a status other than 200, or a redirect to nowhere
    "robots",  # robots.txt forbids it, or answered with 5xx
    "restricted",  # a restricted domain, first or after a redirect
    "refused-address",  # not an http(s) address, or not a global one
    "redirects",  # too many
    "dns",
    "tls",
    "connection",  # refused, reset, or an answer that is not HTTP
    "timeout",  # the deadline passed
    "too-large",  # more bytes than the cap, or so declared
    "circuit-open",  # its host failed too often just before
    "opt-out",  # images: X-Robots-Tag or TDM-Reservation
    "not-an-image",  # images: the first bytes are of no format that is decoded here
)
_REDIRECTS = (301, 302, 303, 307, 308)
_ERROR_PAGE_BYTES = 65_536
_MAX_OPEN = 500  # connections of one process; systems allow 1,024 files
_MAX_RULES_KEPT = 500_000  # of all robots.txt remembered; about 200 bytes each
_ODD = "odd-answer"  # between the functions here; told as "connection"
_FAULTS = ("connection", "timeout", "tls", "dns")  # of the host, as far as its circuit is concerned


class FetchParams(Strict):
    """Manners and limits of the crawler."""

    policy: PolicyParams
    contact: str = Field(min_length=3)  # a page or mail address in the user agent
    resolve: dict[str, str] = {}  # host -> address[:port], as curl --resolve; these may be non-global addresses
    per_host: int = Field(4, ge=1, le=4096)  # connections to one host at a time
    delay: float = Field(0.0, ge=0, le=1_000_000)  # seconds between the starts of two requests to one host
    max_crawl_delay: float = Field(
        30.0, ge=0, le=1_000_000
    )  # seconds; robots.txt may ask for more than delay, up to this
    deadline: float = Field(60.0, gt=0, le=1_000_000)  # seconds a request may take, redirects not included
    max_bytes: int = Field(20_000_000, ge=1, le=2**50)
    max_redirects: int = Field(5, ge=0, le=1000)
    retries: int = Field(2, ge=0, le=1000)  # after a connection fault, 429 or 5xx
    backoff: float = Field(0.5, ge=0, le=1_000_000)  # seconds before the first retry, doubled each time, with jitter
    breaker_faults: int = Field(5, ge=1, le=1000)  # faults of a host in a row, after which it is left alone
    breaker_rest: float = Field(300.0, ge=0, le=1_000_000)  # seconds it is left alone
    robots_expiry: float = Field(
        86_400.0, gt=0, le=1_000_000
    )  # seconds a robots.txt is used for; RFC 9309, 2.4: at most a day
    hosts_kept: int = Field(20_000, ge=1, le=10**12)  # hosts and robots.txt remembered at a time


@dataclass
class Fetched:
    """The hops of one fetch and how it ended (:data:`OUTCOMES`).

    ``robots`` maps the origins whose robots.txt was heeded on the way to its answer, or to None where an earlier fetch
    has that.
    """

    url: str
    outcome: str = "connection"
    hops: list[Hop] = field(default_factory=list)
    robots: dict[str, Hop | None] = field(default_factory=dict)


@dataclass
class _Robots:
    """robots.txt of one origin. ``fault`` is the outcome that kept it from being read, or ""."""

    rules: Rules
    hop: Hop | None
    fault: str
    expires: float

    def taken(self) -> Hop | None:
        """The answer, for the first who asks, who records it; the rules are all that is kept."""
        hop, self.hop = self.hop, None
        return hop


def agent(params: FetchParams) -> str:
    """Who we say we are."""
    return f"{params.policy.token}/0.1 (+{params.contact})"


class Fetcher:
    """Fetches addresses under :class:`FetchParams`; use as an async context manager.

    At most ``in_flight`` answers are read at a time, so their bodies bound the memory; requests that wait for their
    host's turn, or for a host that is silent, do not count. With
    ``sniff``, what is to be an image and by its first bytes is none is not read on.
    """

    def __init__(self, params: FetchParams, in_flight: int = 1000, seed: int = 0, sniff: bool = True) -> None:
        self.params, self._sniff = params, sniff
        self.policy = Policy(params.policy)
        self.agent = agent(params)
        self.hosts = Hosts(params.per_host, params.breaker_faults, params.breaker_rest, params.hosts_kept)
        self._robots: OrderedDict[str, _Robots] = OrderedDict()
        self._rules = 0  # in all of them
        self._asking: dict[str, asyncio.Lock] = {}
        self._flight = asyncio.Semaphore(in_flight)
        self._open = asyncio.Semaphore(_MAX_OPEN)
        self._random = random.Random(seed)
        self._session: Any = None

    async def __aenter__(self) -> Fetcher:
        import aiohttp

        from components.crawl.lenient import LenientHandler

        connector = aiohttp.TCPConnector(
            limit=0, resolver=checked_resolver(self.params.resolve), use_dns_cache=True, ttl_dns_cache=300
        )
        # No other way in: aiohttp lets requests and responses be replaced, not what reads the connection.
        connector._factory = functools.partial(LenientHandler, loop=asyncio.get_running_loop())  # type: ignore[assignment]
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self.agent, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None),  # ours is asyncio.timeout around the whole exchange
            trust_env=False,
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
            max_headers=MAX_FIELDS + 8,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fetch(self, url: str, image: bool = False) -> Fetched:
        """Fetch ``url`` with redirects; faults are outcomes, not exceptions.

        With ``image``, reading stops as soon as the answer is seen not to be one, or to be opted out; error pages
        and what is larger than the cap are not read at all.
        """
        result = Fetched(url)
        url = resolve("", url)
        if not url:
            result.outcome = "refused-address"
            return result
        for _ in range(self.params.max_redirects + 1):
            if self.policy.restricts(url):
                result.outcome = "restricted"
                return result
            if self.params.policy.respect_robots:
                robots = await self._robots_of(origin(url))
                result.robots[origin(url)] = robots.taken()
                if not robots.rules.allows(url):
                    result.outcome = robots.fault or "robots"
                    return result
                delay = robots.rules.crawl_delay
            else:
                delay = 0.0
            hop, result.outcome = await self._persist(url, self.params.max_bytes, delay, image)
            if hop is None:
                return result
            result.hops.append(hop)
            if result.outcome != "ok" or hop.status not in _REDIRECTS:
                if result.outcome == "ok" and hop.status != 200:
                    result.outcome = "http-error"
                return result
            url = resolve(url, hop.header("location"))
            if not url:
                result.outcome = "http-error"
                return result
        result.outcome = "redirects"
        return result

    async def _robots_of(self, site: str) -> _Robots:
        known = self._robots.get(site)
        if known is not None and time.monotonic() < known.expires:
            self._robots.move_to_end(site)
            return known
        lock = self._asking.setdefault(site, asyncio.Lock())
        async with lock:
            known = self._robots.get(site)
            if known is None or time.monotonic() >= known.expires:
                hop, fault = await self._robots_hop(site)
                status, body = heard(hop.response(MAX_BYTES)) if hop else (0, b"")
                rules = await asyncio.to_thread(lambda: rules_for(status, body, self.params.policy.token).ready())
                # An unreachable robots.txt forbids everything, but not for a whole day.
                lasts = self.params.robots_expiry if 0 < status < 500 else self.params.breaker_rest
                if known is not None:
                    self._rules -= len(self._robots.pop(site).rules.rules)
                known = self._robots[site] = _Robots(rules, hop, fault, time.monotonic() + lasts)
                self._rules += len(rules.rules)
                while len(self._robots) > max(1, self.params.hosts_kept) or self._rules > _MAX_RULES_KEPT:
                    self._rules -= len(self._robots.popitem(last=False)[1].rules.rules)
        self._asking.pop(site, None)
        return known

    async def _robots_hop(self, site: str) -> tuple[Hop | None, str]:
        """The answer for ``/robots.txt``, up to five redirects followed (RFC 9309, 2.3.1.2), under its own address."""
        own = f"{site}/robots.txt"
        url = own
        for _ in range(6):
            hop, outcome = await self._persist(url, MAX_BYTES, 0.0, False)
            if hop is None:
                return None, outcome
            if hop.status not in _REDIRECTS:
                fault = outcome if outcome in _FAULTS else ""  # it broke off
                return Hop(own, hop.status, hop.reason, hop.headers, hop.body, hop.cut), fault
            url = resolve(url, hop.header("location"))
            if not url or self.policy.restricts(url):
                return Hop(own, 404, "redirected away", [], b""), ""
        return Hop(own, 404, "redirects", [], b""), ""

    async def _persist(self, url: str, max_bytes: int, delay: float, image: bool) -> tuple[Hop | None, str]:
        hop, outcome = None, "connection"
        for attempt in range(self.params.retries + 1):
            hop, outcome = await self._once(url, max_bytes, delay, image)
            again = outcome in ("connection", "timeout") or (hop is not None and _is_busy(hop.status))
            if not again or attempt == self.params.retries:
                break
            # Full jitter between one and two times the step, so that clients of one failed server spread out.
            await asyncio.sleep(self.params.backoff * 2**attempt * (1 + self._random.random()))
        return hop, outcome

    async def _once(self, url: str, max_bytes: int, delay: float, image: bool) -> tuple[Hop | None, str]:
        host = (urlsplit(url).hostname or "").lower()
        if is_refused_literal(host) and host not in self.params.resolve:
            return None, "refused-address"
        async with self.hosts.slot(host) as known:
            if self.hosts.is_open(known):
                return None, "circuit-open"
            await self.hosts.turn(known, max(self.params.delay, min(delay, self.params.max_crawl_delay)))
            if self.hosts.is_open(known):
                return None, "circuit-open"
            async with self._open:
                hop, outcome = await self._exchange(url, max_bytes, image)
            self._learn(known, hop, outcome)
        return hop, "connection" if outcome == _ODD else outcome

    def _learn(self, known: Host, hop: Hop | None, outcome: str) -> None:
        busy = hop is not None and _is_busy(hop.status)
        self.hosts.note(known, good=not busy and outcome not in _FAULTS)
        if busy and hop is not None and (wait := retry_after(hop.header("retry-after"))):
            self.hosts.hold(known, min(wait, self.params.max_crawl_delay))

    async def _exchange(self, url: str, max_bytes: int, image: bool) -> tuple[Hop | None, str]:
        """One request and its answer, within the deadline."""
        import aiohttp

        body = bytearray()
        hop: Hop | None = None
        refused = ""
        try:
            async with asyncio.timeout(self.params.deadline) as limit:
                async with self._session.get(_verbatim(url), allow_redirects=False) as answer:
                    kept = [(n, v) for n, v in answer.headers.items() if n.lower() != "transfer-encoding"]
                    hop = Hop(url, answer.status, answer.reason or "", kept, b"")
                    async with self._reading(limit):
                        refused = await self._body(answer, hop, body, max_bytes, image)
                    if refused:
                        answer.close()  # the rest of the body is not read
        except TimeoutError:
            if hop is None:
                return None, "timeout"
            refused = "timeout"
        except (aiohttp.ClientError, OSError, ValueError) as fault:
            return None, _named(fault)
        hop.body = bytes(body[:max_bytes])
        if refused:
            hop.cut = {"too-large": "length", "timeout": "time"}.get(refused, "unspecified")
        return hop, refused or "ok"

    async def _body(self, answer: Any, hop: Hop, body: bytearray, max_bytes: int, image: bool) -> str:
        """Read the body of ``answer`` into ``body``; why it was not, or not wholly, or ""."""
        refused = self._refused(hop, max_bytes, answer.content_length) if image else ""
        if hop.status in _REDIRECTS or (image and not refused and hop.status != 200):
            # Read only so that the connection can be used again: an error page is no image.
            if await _read(answer.content, body, _ERROR_PAGE_BYTES, False):
                answer.close()
            body.clear()
        elif not refused:
            refused = await _read(answer.content, body, max_bytes, image and self._sniff and not _is_coded(hop))
        return refused

    @contextlib.asynccontextmanager
    async def _reading(self, limit: asyncio.Timeout) -> AsyncIterator[None]:
        """One of the answers that are read at a time; waiting for that is not counted in ``limit``."""
        loop = asyncio.get_running_loop()
        left = (limit.when() or loop.time()) - loop.time()
        limit.reschedule(None)
        async with self._flight:
            limit.reschedule(loop.time() + left)
            yield

    def _refused(self, hop: Hop, max_bytes: int, declared: int | None) -> str:
        """Why an image's body need not be read, by its headers."""
        opted = header_opts_out(hop.values("x-robots-tag"), hop.values("tdm-reservation"), self.params.policy.token)
        if opted and self.params.policy.respect_opt_out:
            return "opt-out"
        return "too-large" if hop.status == 200 and (declared or 0) > max_bytes else ""


def _verbatim(url: str) -> Any:
    """``url`` for aiohttp, so that path and query go out as they are; parsed by its library, ``/a?`` becomes ``/a``."""
    from yarl import URL

    parts = urlsplit(url)
    return URL.build(scheme=parts.scheme, authority=parts.netloc, path=target(url), encoded=True)


async def _read(content: Any, body: bytearray, max_bytes: int, image: bool) -> str:
    """Read ``content`` into ``body``; "too-large" or "not-an-image" when reading was given up."""
    sniffed = not image
    async for block in content.iter_chunked(1 << 16):
        body += block
        if not sniffed and len(body) >= HEAD_BYTES:
            if not looks_like_image(bytes(body[:HEAD_BYTES])):
                return "not-an-image"
            sniffed = True
        if len(body) > max_bytes:
            return "too-large"
    return "" if sniffed or looks_like_image(bytes(body)) else "not-an-image"


def retry_after(text: str) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: a number or a date); 0 when it says neither."""
    if text.strip().isdecimal() and len(text) < 12:
        return float(text)
    with contextlib.suppress(ValueError, TypeError, IndexError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def _is_busy(status: int) -> bool:
    return status == 429 or status >= 500


def _is_coded(hop: Hop) -> bool:
    return hop.header("content-encoding").strip().lower() not in ("", "identity")


def _named(fault: Exception) -> str:
    """The outcome that ``fault`` stands for."""
    import aiohttp

    if isinstance(fault, RefusedAddress) or isinstance(getattr(fault, "os_error", None), RefusedAddress):
        return "refused-address"
    if isinstance(fault, aiohttp.InvalidURL):  # "127.1", "2130706433": addresses that only look like names
        return "refused-address"
    if isinstance(fault, aiohttp.ClientConnectorDNSError):
        return "dns"
    if isinstance(fault, aiohttp.ClientSSLError):
        return "tls"
    # An answer came, and it was odd: that says nothing about the host's next one.
    odd = isinstance(fault, (aiohttp.ClientResponseError, aiohttp.ClientPayloadError))
    return _ODD if odd else "connection"
