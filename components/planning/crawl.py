"""What curating N WARC files takes: hosts, time, bytes and cores, from rates measured on the machine at hand.

    python -m components.planning crawl --warcs 90000 --cores 640

Every figure is a product of a count and a rate, so it can be checked by hand. What a WARC file holds differs from crawl
to crawl: those numbers are in the rates, too, and come from the reports of a trial (reports/curate.json).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from components.errors import VitrailError
from components.params import Strict, load_params
from components.progress import duration

if TYPE_CHECKING:
    from components.crawl.spider import CrawlParams

LARGEST = 10_000_000  # WARC files that a plan is made for; a monthly Common Crawl has 90,000


class WarcRates(Strict):
    """What a WARC file holds."""

    pages: float = Field(gt=0, le=1e15)  # HTML pages
    megabytes: float = Field(gt=0, le=10_000_000)  # on disk
    links: float = Field(ge=0, le=1e15)  # image links a page, as met
    unique: float = Field(gt=0, le=1)  # of links, those of an address not met before
    wanted: float = Field(gt=0, le=1)  # of unique ones, those that policy lets through
    answered: float = Field(gt=0, le=1)  # of those asked for, those that come as an image within the limits
    kept: float = Field(gt=0, le=1)  # of those, those left after duplicates and NSFW
    image_bytes: float = Field(gt=0, le=1e15)  # of an image
    images_per_host: float = Field(gt=0, le=1e15)  # addresses a host


class CoreRates(Strict):
    """Of one core, a second."""

    scan: float = Field(gt=0, le=1e15)  # pages: WARC record to links
    unique: float = Field(gt=0, le=1e15)  # links made unique
    fetch: float = Field(gt=0, le=1e15)  # images, when no host holds it up
    decode: float = Field(gt=0, le=1e15)  # images decoded and hashed
    nsfw: float = Field(gt=0, le=1e15)  # images scored
    faces: float = Field(gt=0, le=1e15)  # images searched for faces
    store: float = Field(gt=0, le=1e15)  # images written into shards


class CrawlRates(Strict):
    """``params/rates/curate.yaml``."""

    warc: WarcRates
    core: CoreRates


def plan(
    warcs: float, crawl: CrawlParams, rates: CrawlRates, cores: int | None = None, megabits: float | None = None
) -> str:
    """The plan, to read. ``megabits``: of the line to the web, a second; None: the line is not looked at.

    Raises:
        VitrailError: a number of files, cores or megabits that no plan is made for.
    """
    if not 1 <= warcs <= LARGEST:
        raise VitrailError(f"--warcs {warcs:g}: choose between 1 and {LARGEST:,}")
    cores = os.cpu_count() or 1 if cores is None else cores
    if cores < 1:
        raise VitrailError(f"--cores {cores}: choose 1 or more")
    if megabits is not None and megabits <= 0:
        raise VitrailError(f"--megabits {megabits:g}: choose more than 0")
    held, core = rates.warc, rates.core
    pages = warcs * held.pages
    links = pages * held.links
    unique = links * held.unique
    asked = unique * held.wanted
    images = asked * held.answered
    kept = images * held.kept
    hosts = asked / held.images_per_host
    fetched = images * held.image_bytes
    work = {  # core-seconds
        "scan": pages / core.scan,
        "links made unique": links / core.unique,
        "fetch": asked / core.fetch,
        "decode, hash": images / core.decode,
        "NSFW": images / core.nsfw,
        "faces": kept / core.faces,
        "shards": kept / core.store,
    }
    # One host is asked so often at most, whatever the cores; the largest hold many times the average.
    each = max(crawl.fetch.delay, 1e-3)
    polite = held.images_per_host * each
    line = 8 * fetched / (megabits * 1e6) if megabits else 0.0
    time = sum(work.values()) / cores
    waits = max(polite, line)
    width = max(map(len, work))
    lines = [
        f"{warcs:,.0f} WARC files on {cores:,} cores: {pages:,.0f} pages, {links:,.0f} image links,"
        f" {unique:,.0f} unique, {asked:,.0f} asked for, {images:,.0f} images, {kept:,.0f} kept",
        f"hosts: {hosts:,.0f}, {held.images_per_host:,.0f} images each; at {crawl.fetch.delay:g} s between requests"
        f" (fetch.delay) an average one takes {duration(polite)}",
        "bytes:",
        f"  {'WARC files read':{width}}  {_bytes(warcs * held.megabytes * 1e6):>12}",
        f"  {'images fetched':{width}}  {_bytes(fetched):>12}",
        f"  {'shards':{width}}  {_bytes(kept * held.image_bytes):>12}",
        "time:",
        *(f"  {name:{width}}  {duration(seconds / cores):>12}" for name, seconds in work.items()),
        f"  {'in all':{width}}  {duration(time):>12}",
        f"core-hours: {sum(work.values()) / 3600:,.1f}",
    ]
    if megabits:
        lines.append(f"line: {megabits:,.0f} Mbit/s takes {duration(line)} for the images alone")
    if waits > time:
        lines.append(f"cores wait: the {'line' if line > polite else 'hosts'} alone take {duration(waits)}")
    return "\n".join(lines)


def load_rates(path: Path) -> CrawlRates:
    """The rates in ``path``, YAML or JSON."""
    return load_params(path, CrawlRates)


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"
