"""The crawl stage: a demo site served and crawled, a web site crawled, named images fetched, or files registered."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from components.context import StageContext
from components.crawl import fetch_images
from components.crawl.demo import site as demo_site
from components.crawl.demo.server import serve
from components.crawl.spider import CrawlParams, crawl
from components.errors import VitrailError
from components.lock import hold
from components.params import Strict, fingerprint, load_params
from components.storage import atomic_dir, atomic_file
from components.web.formats.urls import host_of, normal_host
from components.web.sources.sources_json import Sources, register
from components.web.work import work_folder

WARC_NAME = "site-00000.warc.gz"


class WebSite(Strict):
    """A crawl of the real web: where to begin, and on which hosts to follow links (those of the seeds when empty)."""

    kind: Literal["web"]
    seeds: tuple[str, ...] = Field(min_length=1)
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class CrawlInputs:
    """What the crawl stage reads."""

    source: str  # a folder, a file, s3://bucket/prefix, or a .yaml that describes a site or a list


def run(params: CrawlParams, inputs: CrawlInputs, outputs: Path, context: StageContext) -> dict[str, int]:
    """Fill ``outputs`` with ``sources.json`` and ``crawl.json`` (and the WARC, when there was something to crawl).

    Raises:
        VitrailError: bad input, nothing that could be read, or another run at work on ``outputs``.
    """
    with hold(outputs):
        return _run(params, inputs, outputs, context)


def _run(params: CrawlParams, inputs: CrawlInputs, outputs: Path, context: StageContext) -> dict[str, int]:
    source, out, storage = inputs.source, outputs, context.storage
    if not source.endswith((".yaml", ".yml")):
        sources = register(source, storage)
        counts = {"files": sum(file.kind != "text" for file in sources.files)}
        counts |= {f"left-{why}": count for why, count in sources.left.items()}
        with atomic_dir(out) as folder:
            _finish(folder, sources, counts)
        return counts
    site = site_of(Path(source))
    if isinstance(site, fetch_images.NamedImages):
        counts = dict(sorted(fetch_images.run(site, params.fetch, params.images, out, storage).items()))
        with atomic_file(out / "crawl.json", "w") as file:
            json.dump(counts, file, indent=1)
        fetch_images.finished(out)
        return counts
    journal = _journal(site, params, out) if isinstance(site, WebSite) else None
    with atomic_dir(out) as folder:
        warc = folder / WARC_NAME
        if isinstance(site, WebSite):
            counts = asyncio.run(crawl(site.seeds, hosts_of(site), params, warc, journal=journal))
        else:
            counts = _crawl_demo(site, params, folder, warc)
        if not counts.get("page-ok"):
            raise VitrailError(f"{source}: not one page could be read ({counts}); are the seeds right and reachable?")
        described = register(str(warc), storage).files[0]
        # Of the demo's site the planted truth says what becomes of each image, without a look at the fetch.
        outcomes = fetch_images.OUTCOMES_NAME if isinstance(site, WebSite) else ""
        _finish(folder, Sources(root="", files=(described,), outcomes=outcomes), counts)
    if journal is not None:
        fetch_images.finished(out)
    return counts


def hosts_of(site: WebSite) -> frozenset[str]:
    """The hosts on which a crawl of ``site`` follows links."""
    return frozenset(map(normal_host, site.hosts)) or frozenset(host_of(seed) for seed in site.seeds)


def _journal(site: WebSite, params: CrawlParams, out: Path) -> Path:
    """Where a crawl of ``site`` finds what an earlier run that was killed has fetched."""
    # Not the manners: a crawl that is slowed down half-way keeps what was fetched. Nor how far it goes.
    policy = params.fetch.policy.model_dump(mode="json")
    return work_folder(out, fingerprint(site.model_dump(), policy, [params.fetch.max_bytes])[:16]) / "site.journal"


def site_of(path: Path) -> demo_site.DemoSite | WebSite | fetch_images.NamedImages:
    """What a .yaml describes.

    Raises:
        VitrailError: it describes nothing of a known kind.
    """

    class Kind(Strict, extra="ignore"):
        kind: Literal["demo", "web", "fetch"]

    kind = load_params(path, Kind).kind
    if kind == "demo":
        return load_params(path, demo_site.DemoSite)
    return load_params(path, WebSite) if kind == "web" else load_params(path, fetch_images.NamedImages)


def _crawl_demo(site: demo_site.DemoSite, params: CrawlParams, folder: Path, warc: Path) -> dict[str, int]:
    planted = demo_site.build(site)
    with serve(planted.site) as address:
        hosts = dict.fromkeys(demo_site.HOSTS, address)
        fetch = params.fetch.model_copy(update={"resolve": {**params.fetch.resolve, **hosts}, "delay": 0.0})
        local = params.model_copy(update={"fetch": fetch})
        counts = asyncio.run(
            crawl([demo_site.SEED], demo_site.HOSTS | {demo_site.RESTRICTED}, local, warc, demo_site.DATE)
        )
    with atomic_file(folder / "planted.json", "w") as file:
        json.dump(planted.truth, file, indent=1)
    return counts


def _finish(folder: Path, sources: Sources, counts: dict[str, int]) -> None:
    sources.save(folder)
    with atomic_file(folder / "crawl.json", "w") as file:
        json.dump(counts, file, indent=1, sort_keys=True)
