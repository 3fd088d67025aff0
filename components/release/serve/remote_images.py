"""Images at addresses that a request names: public addresses alone, few bytes, little time.

A user of a server asks for them, so the server must not be made to reach what only it can reach. The check is in the
connector's resolver (:mod:`components.web.formats.addresses`), and every redirect passes it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from components.errors import VitrailError
from components.params import Strict
from components.web.formats.addresses import RefusedAddress, checked_resolver, is_refused_literal
from components.web.formats.urls import resolve

_REDIRECTS = (301, 302, 303, 307, 308)


class UrlParams(Strict):
    """What an address may cost."""

    max_bytes: int = Field(20_000_000, ge=1, le=2**50)  # of an image
    seconds: float = Field(20.0, gt=0, le=86_400)  # for one image, redirects included
    max_redirects: int = Field(3, ge=0, le=100)
    at_once: int = Field(16, ge=1, le=4096)  # requests under way
    resolve: dict[str, str] = {}  # host -> address[:port], as curl --resolve; these may be non-public addresses


def fetch_images(urls: Sequence[str], params: UrlParams) -> list[bytes | VitrailError]:
    """The bytes at each of ``urls``, or why there are none."""
    if not urls:
        return []
    with ThreadPoolExecutor(1) as pool:  # a thread of its own: the caller's may run an event loop
        return pool.submit(asyncio.run, _all(urls, params)).result()


async def _all(urls: Sequence[str], params: UrlParams) -> list[bytes | VitrailError]:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=params.at_once, resolver=checked_resolver(params.resolve))
    async with aiohttp.ClientSession(
        connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False,
        headers={"User-Agent": "vitrail", "Accept-Encoding": "identity"},
    ) as session:  # fmt: skip
        gate = asyncio.Semaphore(params.at_once)
        return list(await asyncio.gather(*(_one(session, url, params, gate) for url in urls)))


async def _one(session: Any, named: str, params: UrlParams, gate: asyncio.Semaphore) -> bytes | VitrailError:
    import aiohttp

    shown = named[:200]
    try:
        async with gate, asyncio.timeout(params.seconds):
            return await _follow(session, named, params)
    except VitrailError as fault:
        return VitrailError(f"{shown}: {fault}")
    except TimeoutError:
        return VitrailError(f"{shown}: no image within {params.seconds:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as fault:
        inner = getattr(fault, "os_error", None)
        if isinstance(fault, RefusedAddress) or isinstance(inner, RefusedAddress):
            return VitrailError(f"{shown}: refused: not an address of the public internet")
        return VitrailError(
            f"{shown}: cannot be fetched ({' '.join(str(fault).split())[:150] or type(fault).__name__})"
        )


async def _follow(session: Any, named: str, params: UrlParams) -> bytes:
    url = resolve("", named)
    for _ in range(params.max_redirects + 1):
        host = (urlsplit(url).hostname or "").lower() if url else ""
        if not host:
            raise VitrailError("refused: not an http or https address")
        if is_refused_literal(host) and host not in params.resolve:
            raise VitrailError("refused: not an address of the public internet")
        async with session.get(url, allow_redirects=False) as answer:
            if answer.status in _REDIRECTS:
                url = resolve(url, answer.headers.get("Location", ""))
                continue
            if answer.status != 200:
                raise VitrailError(f"the server answers {answer.status}")
            body = bytearray()
            async for block in answer.content.iter_chunked(1 << 16):
                body += block
                if len(body) > params.max_bytes:
                    raise VitrailError(f"too-many-bytes: over {params.max_bytes}")
            return bytes(body)
    raise VitrailError(f"more than {params.max_redirects} redirects")
