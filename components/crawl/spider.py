"""A breadth-first crawl into one WARC file: pages below the seeds on allowed hosts, then the images they name.

All pages come before the first image, so that a page that opts its images out forbids them before they are asked for.
Answers go to a journal as they come, in any order: a host that is silent keeps nobody waiting, and a killed crawl asks
for the rest only. From it the WARC is written in the order in which addresses were found, so that two crawls of an
unchanged site give the same file (but for dates, unless ``date`` is fixed).
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from components.crawl.fetch import Fetched, Fetcher, FetchParams, agent
from components.crawl.fetch_images import OUTCOMES_NAME, ImagesParams
from components.crawl.journal import Journal
from components.images.sandbox import SandboxParams
from components.params import Strict
from components.progress import Progress
from components.tables.schemas import OUTCOMES
from components.web.formats.charset import decode_text
from components.web.formats.content_type import PAGE_TYPES
from components.web.formats.links import Page
from components.web.formats.opt_out import header_opts_out
from components.web.formats.pages import read_page
from components.web.formats.urls import resolve
from components.web.formats.warc import WarcWriter
from components.web.sources.link_table import PartRowWriter


class CrawlParams(Strict):
    """``params/crawl.yaml``: manners and bounds of the crawl."""

    fetch: FetchParams
    max_pages: int = Field(10_000, ge=1, le=10**12)
    max_depth: int = Field(8, ge=0, le=1000)  # links from a seed
    max_images: int = Field(100_000, ge=0, le=10**12)
    in_flight: int = Field(32, ge=1, le=4096)  # answers read at a time; bounds memory to in_flight x fetch.max_bytes
    sandbox: SandboxParams = SandboxParams()  # for pages
    images: ImagesParams = ImagesParams()  # of a source with `kind: fetch`


async def crawl(
    seeds: Iterable[str],
    hosts: frozenset[str],
    params: CrawlParams,
    out: Path,
    date: str | None = None,
    journal: Path | None = None,
) -> dict[str, int]:
    """Crawl from ``seeds`` within ``hosts`` into the gzipped WARC ``out``; returns counts by outcome.

    Images may lie on any host that is not restricted; pages are followed on ``hosts`` only. What ``journal`` (beside
    ``out`` and removed, when None) holds already is not asked for again. How each address ended goes to
    the table ``outcomes`` beside ``out``.
    """
    return await _crawl(Recrawl(tuple(seeds)), hosts, params, out, date, journal)


@dataclass(frozen=True)
class Recrawl:
    """What a crawl asks for, and what it leaves alone since an earlier one asked for it; each is read once."""

    pages: Iterable[str]
    images: Iterable[str] = ()
    known: Iterable[str] = ()  # pages and images


async def crawl_again(
    again: Recrawl, hosts: frozenset[str], params: CrawlParams, out: Path, journal: Path
) -> dict[str, int]:
    """Ask for ``again``'s pages and images, and for what these pages name and nobody has asked for, into ``out``."""
    return await _crawl(again, hosts, params, out, None, journal)


async def _crawl(
    again: Recrawl, hosts: frozenset[str], params: CrawlParams, out: Path, date: str | None, journal: Path | None
) -> dict[str, int]:
    kept = journal or out.with_name(f".{out.name}.journal")
    with Journal(kept) as answers:
        async with Fetcher(params.fetch, params.in_flight, sniff=False) as fetcher:
            crawl = _Crawl(params, hosts, answers, fetcher, again)
            await crawl.pages(again.pages)
            await crawl.fetch(crawl.wanted(), image=True)
        crawl.progress.close()
        crawl.write(out, date)
    if journal is None:
        kept.unlink()
    return dict(sorted(crawl.counts.items()))


class _Crawl:
    """One crawl: what was found, in order, and how it ended."""

    def __init__(
        self, params: CrawlParams, hosts: frozenset[str], answers: Journal, fetcher: Fetcher, again: Recrawl
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.progress = Progress("crawl", None, unit="responses")
        self._params, self._hosts, self._answers, self._fetcher = params, hosts, answers, fetcher
        self._pages, self._known = answers.table("pages"), answers.table("known")
        self._images = answers.table("images")  # 1: a page opts it out
        self._known.add_all(again.known)
        self._images.add_all(again.images)

    async def pages(self, seeds: Iterable[str]) -> None:
        """Fetch pages, wave by wave, and note what they name."""
        self._pages.add_all(resolve("", seed) or seed for seed in seeds)
        done = 0
        for _ in range(self._params.max_depth + 1):
            last = len(self._pages)
            await self.fetch(url for url, _ in self._pages.between(done, last))
            for url, _ in self._pages.between(done, last):
                # Beside the loop, which has connections to keep: a hostile page may take its parser a minute.
                if (page := await asyncio.to_thread(self._page, self._answers.get(url))) is not None:
                    self._note(page)
            done = last
            if len(self._pages) == done:
                return
        self.counts["depth-limit"] += len(self._pages) - done
        self._pages.cut(done)

    def wanted(self) -> Iterator[str]:
        """The images to fetch."""
        opted_out = self._images.valued(1)
        found = len(self._images) - opted_out
        for name, count in (("link-opt-out", opted_out), ("image-limit", found - self._params.max_images)):
            if count > 0:
                self.counts[name] = count
        return itertools.islice((url for url, out in self._images.between() if not out), self._params.max_images)

    async def fetch(self, urls: Iterable[str], image: bool = False) -> None:
        """Fetch those of ``urls`` that the journal lacks, in any order."""
        waiting = asyncio.Semaphore(self._params.images.waiting)
        try:
            async with asyncio.TaskGroup() as group:

                async def one(url: str) -> None:
                    try:
                        self._answers.add(url, await self._fetcher.fetch(url, image))
                        self.progress.advance()
                    finally:
                        waiting.release()

                for url in urls:
                    if url in self._answers:
                        self.progress.advance()
                        continue
                    await waiting.acquire()
                    group.create_task(one(url))
        except BaseExceptionGroup as faults:  # a full disk, say: one of them tells it
            raise faults.exceptions[0] from None

    def write(self, out: Path, date: str | None) -> None:
        """Write the answers as a WARC, robots.txt of each origin before its first one, and how each address ended."""
        robots = self._answers.table("origins")  # whose robots.txt is written
        with open(out, "wb") as file, PartRowWriter(out.with_name(OUTCOMES_NAME), OUTCOMES) as outcomes:
            writer = WarcWriter(file, date)
            software = {"software": "vitrail", "robots": "obey"}
            writer.info(software | {"http-header-user-agent": agent(self._params.fetch)})
            for kind, met in (("page", self._pages), ("image", self._images)):
                for url, _ in met.between():
                    if kind == "image" and url not in self._answers:
                        continue
                    fetched = self._answers.get(url)
                    for site, answer in fetched.robots.items():
                        if answer is not None and robots.add(site):
                            writer.hop(answer)
                    for hop in fetched.hops:
                        writer.hop(hop)
                    self.counts[f"{kind}-{fetched.outcome}"] += 1
                    status = fetched.hops[-1].status if fetched.hops else 0
                    outcomes.add({"url": url, "outcome": fetched.outcome, "status": status, "kind": kind})

    def _note(self, page: Page) -> None:
        """Take up the images and pages that ``page`` names."""
        out = page.opt_out and self._params.fetch.policy.respect_opt_out
        for link in page.images:
            if (link.reason and not out) or (link.url in self._known and link.url not in self._images):
                continue
            if not self._images.add(link.url, int(out)) and out:
                self._images.set(link.url, 1)
        for anchor in () if page.nofollow else page.anchors:
            if anchor in self._pages or anchor in self._known or (urlsplit(anchor).hostname or "") not in self._hosts:
                continue
            if len(self._pages) < self._params.max_pages:
                self._pages.add(anchor)
            else:
                self.counts["page-limit"] += 1

    def _page(self, fetched: Fetched) -> Page | None:
        """What a page says, when it is HTML with status 200."""
        last = fetched.hops[-1] if fetched.hops else None
        if fetched.outcome not in ("ok", "too-large", "timeout") or last is None:
            return None
        response = last.response(self._params.fetch.max_bytes)
        if response.content_type not in PAGE_TYPES:
            return None
        token = self._params.fetch.policy.token
        page = read_page(decode_text(response), last.url, token, self._params.sandbox)
        if page is None:
            self.counts["page-too-costly"] += 1
            return None
        said = header_opts_out(response.values("x-robots-tag"), response.values("tdm-reservation"), token)
        return dataclasses.replace(page, opt_out=page.opt_out or said)
