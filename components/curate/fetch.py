"""One polite, bounded HTTP fetch: http(s) only, addresses checked when resolved, bytes and time capped, robots first.

The connection goes to the very address that was checked, since the check stands inside the connector's resolver; each
redirect is a fetch of its own with all checks again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from pydantic import Field

from components.curate.links import resolve
from components.curate.policy import Policy, PolicyParams, origin
from components.curate.robots import MAX_BYTES, Rules, rules_for
from components.params import Strict


class FetchParams(Strict):
    """Manners and limits of the crawler."""

    policy: PolicyParams
    contact: str = Field(min_length=3)  # a page or mail address in the user agent
    resolve: dict[str, str] = {}  # host -> address[:port], as curl --resolve; these may be non-global addresses
    per_host: int = Field(4, ge=1)  # connections to one host at a time
    delay: float = Field(0.0, ge=0)  # seconds between the starts of two requests to one host
    max_crawl_delay: float = Field(30.0, ge=0)  # seconds; robots.txt may ask for more than delay, up to this
    deadline: float = Field(60.0, gt=0)  # seconds a request may take, redirects not included
    max_bytes: int = Field(20_000_000, ge=1)
    max_redirects: int = Field(5, ge=0)
    retries: int = Field(2, ge=0)  # after a connection fault, 429 or 5xx
    backoff: float = Field(0.5, ge=0)  # seconds before the first retry, doubled each time, with jitter


@dataclass
class Hop:
    """One response as received."""

    url: str
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    cut: str = ""  # WARC's word: "length" or "time"


@dataclass
class Fetched:
    """The hops of one fetch and how it ended.

    ``outcome``: "ok", "http-error", "robots", "restricted", "refused-address", "redirects", "dns", "connection",
    "timeout" or "too-large". ``origins`` are those whose robots.txt was asked on the way.
    """

    url: str
    outcome: str = "connection"
    hops: list[Hop] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)


class RefusedAddress(OSError):
    """The host's address is not a global one, and no ``resolve:`` entry allows it."""


class Fetcher:
    """Fetches addresses under :class:`FetchParams`; use as an async context manager."""

    def __init__(self, params: FetchParams, seed: int = 0) -> None:
        self.params = params
        self.policy = Policy(params.policy)
        self.robots: dict[str, tuple[Rules, Hop | None]] = {}
        self.agent = f"{params.policy.token}/0.1 (+{params.contact})"
        self._asking: dict[str, asyncio.Lock] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._next: dict[str, float] = {}
        self._random = random.Random(seed)
        self._session: Any = None

    async def __aenter__(self) -> Fetcher:
        import aiohttp

        connector = aiohttp.TCPConnector(
            limit=0, resolver=_resolver(self.params.resolve), use_dns_cache=True, ttl_dns_cache=300
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self.agent, "Accept-Encoding": "identity"},
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fetch(self, url: str) -> Fetched:
        """Fetch ``url`` with redirects; faults are outcomes, not exceptions."""
        result = Fetched(url)
        for _ in range(self.params.max_redirects + 1):
            if self.policy.restricts(url):
                result.outcome = "restricted"
                return result
            rules = await self._rules(origin(url))
            result.origins.append(origin(url))
            if self.params.policy.respect_robots and not rules.allows(url):
                result.outcome = "robots"
                return result
            hop, outcome = await self._persist(url, self.params.max_bytes)
            result.outcome = outcome
            if hop is None:
                return result
            result.hops.append(hop)
            location = next((value for name, value in hop.headers if name.lower() == "location"), "")
            if outcome != "ok" or hop.status not in (301, 302, 303, 307, 308):
                if outcome == "ok" and hop.status != 200:
                    result.outcome = "http-error"
                return result
            url = resolve(url, location)
            if not url:
                result.outcome = "http-error"
                return result
        result.outcome = "redirects"
        return result

    async def _rules(self, site: str) -> Rules:
        lock = self._asking.setdefault(site, asyncio.Lock())
        async with lock:
            if site not in self.robots:
                hop = await self._robots_hop(site)
                rules = rules_for(hop.status if hop else 0, hop.body if hop else b"", self.params.policy.token)
                self.robots[site] = (rules, hop)
        return self.robots[site][0]

    async def _robots_hop(self, site: str) -> Hop | None:
        """The answer for ``/robots.txt``, up to five redirects followed (RFC 9309, 2.3.1.2), under its own address."""
        url = f"{site}/robots.txt"
        for _ in range(6):
            hop, _outcome = await self._persist(url, MAX_BYTES)
            if hop is None or hop.status not in (301, 302, 303, 307, 308):
                return (
                    Hop(f"{site}/robots.txt", hop.status, hop.reason, hop.headers, hop.body, hop.cut) if hop else None
                )
            target = resolve(url, next((v for n, v in hop.headers if n.lower() == "location"), ""))
            if not target or self.policy.restricts(target):
                return Hop(f"{site}/robots.txt", 404, "redirected away", [], b"")
            url = urljoin(url, target)
        return Hop(f"{site}/robots.txt", 404, "redirects", [], b"")

    async def _persist(self, url: str, max_bytes: int) -> tuple[Hop | None, str]:
        for attempt in range(self.params.retries + 1):
            hop, outcome = await self._once(url, max_bytes)
            again = outcome in ("connection", "timeout") or (
                hop is not None and (hop.status == 429 or hop.status >= 500)
            )
            if not again or attempt == self.params.retries:
                break
            asked = next((v for n, v in hop.headers if n.lower() == "retry-after"), "") if hop else ""
            wait = self.params.backoff * 2**attempt * (1 + self._random.random())
            await asyncio.sleep(max(wait, min(float(asked), self.params.max_crawl_delay) if asked.isdigit() else 0.0))
        return hop, outcome

    async def _once(self, url: str, max_bytes: int) -> tuple[Hop | None, str]:
        import aiohttp

        host = (urlsplit(url).hostname or "").lower()
        if _is_refused_literal(host) and host not in self.params.resolve:
            return None, "refused-address"
        async with self._slots.setdefault(host, asyncio.Semaphore(self.params.per_host)):
            await self._wait_turn(url, host)
            body = bytearray()
            hop: Hop | None = None
            try:
                async with asyncio.timeout(self.params.deadline):
                    async with self._session.get(url, allow_redirects=False) as answer:
                        kept = [(n, v) for n, v in answer.headers.items() if n.lower() != "transfer-encoding"]
                        hop = Hop(url, answer.status, answer.reason or "", kept, b"")
                        async for block in answer.content.iter_chunked(1 << 16):
                            body += block
                            if len(body) > max_bytes:
                                hop.cut = "length"
                                break
            except TimeoutError:
                if hop is None:
                    return None, "timeout"
                hop.cut = "time"
            except (aiohttp.ClientError, OSError, ValueError) as fault:
                if isinstance(fault, RefusedAddress) or isinstance(getattr(fault, "os_error", None), RefusedAddress):
                    return None, "refused-address"
                dns = isinstance(fault, aiohttp.ClientConnectorDNSError)
                return None, "dns" if dns else "connection"
            hop.body = bytes(body[:max_bytes])
            return hop, {"length": "too-large", "time": "timeout", "": "ok"}[hop.cut]

    async def _wait_turn(self, url: str, host: str) -> None:
        known = self.robots.get(origin(url))
        asked = min(known[0].crawl_delay, self.params.max_crawl_delay) if known else 0.0
        delay = max(self.params.delay, asked)
        if delay:
            now = time.monotonic()
            turn = max(self._next.get(host, now), now)
            self._next[host] = turn + delay
            await asyncio.sleep(turn - now)


def _is_refused_literal(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _resolver(fixed: dict[str, str]) -> Any:
    from aiohttp.abc import AbstractResolver
    from aiohttp.resolver import ThreadedResolver

    class Checked(AbstractResolver):
        """Resolves ``fixed`` hosts as told, and all others only to global addresses."""

        def __init__(self) -> None:
            self._inner = ThreadedResolver()

        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
            if host.lower() in fixed:
                address, _, wanted = fixed[host.lower()].partition(":")
                return [
                    {"hostname": host, "host": address, "port": int(wanted or port), "family": socket.AF_INET,
                     "proto": 0, "flags": socket.AI_NUMERICHOST}
                ]  # fmt: skip
            found = await self._inner.resolve(host, port, family)
            usable = [entry for entry in found if not _is_refused_literal(entry["host"])]
            if not usable:
                raise RefusedAddress(f"{host} resolves to no global address")
            return usable

        async def close(self) -> None:
            await self._inner.close()

    return Checked()
