"""A breadth-first crawl into one WARC file: pages below the seeds on allowed hosts, and the images they name.

Requests overlap, records do not: responses are written in the order in which their addresses were found, so that two
crawls of an unchanged site give the same file (but for dates, unless ``date`` is fixed).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from components.crawl.fetch import Fetched, Fetcher, FetchParams
from components.crawl.fetch_images import ImagesParams
from components.images.sandbox import SandboxParams
from components.params import Strict
from components.progress import Progress
from components.web.charset import decode_text
from components.web.content_type import PAGE_TYPES
from components.web.links import Page
from components.web.opt_out import header_opts_out
from components.web.pages import read_page
from components.web.urls import resolve
from components.web.warc import WarcWriter


class CrawlParams(Strict):
    """``params/crawl.yaml``: manners and bounds of the crawl."""

    fetch: FetchParams
    max_pages: int = Field(10_000, ge=1, le=10**12)
    max_depth: int = Field(8, ge=0, le=1000)  # links from a seed
    in_flight: int = Field(
        32, ge=1, le=4096
    )  # requests under way at a time; bounds memory to in_flight x fetch.max_bytes
    sandbox: SandboxParams = SandboxParams()  # for pages
    images: ImagesParams = ImagesParams()  # of a source with `kind: fetch`


async def crawl(
    seeds: Iterable[str], hosts: frozenset[str], params: CrawlParams, out: Path, date: str | None = None
) -> dict[str, int]:
    """Crawl from ``seeds`` within ``hosts`` into the gzipped WARC ``out``; returns counts by outcome.

    Images may lie on any host that is not restricted; pages are followed on ``hosts`` only.
    """
    counts: Counter[str] = Counter()
    progress = Progress("crawl", None, unit="responses")
    with open(out, "wb") as file:
        writer = WarcWriter(file, date)
        async with Fetcher(params.fetch, sniff=False) as fetcher:
            writer.info({"software": "vitrail", "robots": "obey", "http-header-user-agent": fetcher.agent})
            sink = _Sink(writer, fetcher, counts, progress, params.sandbox)
            wave = list(dict.fromkeys(resolve("", seed) or seed for seed in seeds))
            seen_pages, seen_images = set(wave), set[str]()
            opted_out = set[str]()
            obeys = params.fetch.policy.respect_opt_out
            for _ in range(params.max_depth + 1):
                following: list[str] = []
                images: list[str] = []
                async for fetched in _ordered(fetcher, wave, params.in_flight):
                    # Beside the requests under way: a hostile page may take its parser a minute.
                    page = await asyncio.to_thread(sink.page, fetched)
                    if page is None:
                        continue
                    for link in page.images:
                        if page.opt_out and obeys:
                            opted_out.add(link.url)
                        elif not link.reason and link.url not in seen_images:
                            seen_images.add(link.url)
                            images.append(link.url)
                    for anchor in () if page.nofollow else page.anchors:
                        if anchor in seen_pages or (urlsplit(anchor).hostname or "") not in hosts:
                            continue
                        if len(seen_pages) < params.max_pages:
                            seen_pages.add(anchor)
                            following.append(anchor)
                        else:
                            counts["page-limit"] += 1
                # One page that opts an image out forbids it to all of its wave and later, before it is asked for.
                images = [url for url in images if url not in opted_out]
                async for fetched in _ordered(fetcher, images, params.in_flight, image=True):
                    sink.image(fetched)
                wave = following
                if not wave:
                    break
            else:
                counts["depth-limit"] += len(wave)
    progress.close()
    if opted_out:
        counts["link-opt-out"] = len(opted_out)
    return dict(sorted(counts.items()))


async def _ordered(fetcher: Fetcher, urls: list[str], in_flight: int, image: bool = False) -> AsyncIterator[Fetched]:
    """Results in the order of ``urls``, with at most ``in_flight`` requests begun and not yet yielded."""
    pending: deque[asyncio.Task[Fetched]] = deque()
    rest = iter(urls)
    try:
        while True:
            while len(pending) < in_flight and (url := next(rest, None)) is not None:
                pending.append(asyncio.create_task(fetcher.fetch(url, image)))
            if not pending:
                return
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()


class _Sink:
    """Writes what was fetched, robots.txt of each origin before its first response, and counts outcomes."""

    def __init__(
        self, writer: WarcWriter, fetcher: Fetcher, counts: Counter[str], progress: Progress, sandbox: SandboxParams
    ) -> None:
        self._writer, self._fetcher, self._counts, self._progress = writer, fetcher, counts, progress
        self._sandbox = sandbox
        self._robots_written: set[str] = set()

    def page(self, fetched: Fetched) -> Page | None:
        """Write a page's hops; its links when it is HTML with status 200."""
        self._write(fetched, "page")
        last = fetched.hops[-1] if fetched.hops else None
        if fetched.outcome not in ("ok", "too-large", "timeout") or last is None:
            return None
        response = last.response(self._fetcher.params.max_bytes)
        if response.content_type not in PAGE_TYPES:
            return None
        token = self._fetcher.params.policy.token
        page = read_page(decode_text(response), last.url, token, self._sandbox)
        if page is None:
            self._counts["page-too-costly"] += 1
            return None
        said = header_opts_out(response.values("x-robots-tag"), response.values("tdm-reservation"), token)
        return dataclasses.replace(page, opt_out=page.opt_out or said)

    def image(self, fetched: Fetched) -> None:
        """Write an image's hops."""
        self._write(fetched, "image")

    def _write(self, fetched: Fetched, kind: str) -> None:
        for site, answer in fetched.robots.items():
            if site not in self._robots_written:
                self._robots_written.add(site)
                if answer is not None:
                    self._writer.hop(answer)
        for hop in fetched.hops:
            self._writer.hop(hop)
        self._counts[f"{kind}-{fetched.outcome}"] += 1
        self._progress.advance()
