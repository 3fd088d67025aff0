"""Images that WARC pages, WAT records or tables of addresses only name: fetched politely into WARC files for curation.

Links are scanned and made unique on disk, judged by the policy, and spread over partitions by their host; a partition
is fetched by one process, so that each host is asked by one process only. ``crawl`` of a .yaml with ``kind: fetch``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pyarrow as pa
from pydantic import Field

from components.crawl.fetch import Fetcher, FetchParams
from components.crawl.ledger import Ledger
from components.errors import VitrailError
from components.executor import ExecutorParams, kept_workers, map_shards
from components.images.sandbox import SandboxParams
from components.input_paths import InputPath
from components.params import Strict, fingerprint
from components.progress import Progress, track
from components.storage import StorageParams, atomic_dir
from components.tables.database import MemoryParams
from components.tables.parts import PartWriter, assemble, parts
from components.tables.schemas import NAMED_LINKS, OUTCOMES
from components.web.rules.policy import Policy
from components.web.sources.link_table import PartRowWriter, RowWriter, iter_rows, link_batches
from components.web.sources.scan import ScanItem, TableColumns, scan_file
from components.web.sources.sources_json import SourceFile, Sources, register
from components.web.sources.unique import shuffled, unique_links
from components.web.work import work_folder

LINKS_NAME, OUTCOMES_NAME = "links", "outcomes"  # tables in parts
_ALL_LINKS, _UNIQUE = "all-links", "unique-links.parquet"
TARGETS = pa.schema([("url", pa.string()), ("partition", pa.int32()), ("shuffle", pa.int64())])


class ImagesParams(Strict):
    """How named images are fetched."""

    partitions: int = Field(2, ge=1, le=4096)  # by host; at least as many as executor.workers
    in_flight: int = Field(
        64, ge=1, le=4096
    )  # requests of one partition under way; memory: in_flight x fetch.max_bytes
    waiting: int = Field(10_000, ge=1, le=10**12)  # addresses of one partition that wait for their host's turn
    warc_bytes: int = Field(1_000_000_000, ge=1, le=2**50)  # a WARC file begins anew above this
    max_page_bytes: int = Field(10_000_000, ge=1, le=2**50)  # bytes of one HTML page that are read
    sandbox: SandboxParams = SandboxParams()
    memory: MemoryParams = MemoryParams()
    executor: ExecutorParams = ExecutorParams(workers=0)


class NamedImages(Strict):
    """A source .yaml with ``kind: fetch``."""

    kind: Literal["fetch"]
    source: InputPath  # WARC, WAT or Parquet files: folder, file, list of files, or s3://bucket/prefix
    columns: TableColumns = TableColumns()  # of Parquet tables
    limit: int | None = Field(None, ge=1, le=10**12)  # addresses fetched, for a trial


@dataclass(frozen=True)
class PartitionItem:
    """One partition's addresses to fetch."""

    addresses: Path  # Parquet: url
    folder: Path
    prefix: str
    count: int
    fetch: FetchParams
    images: ImagesParams


def run(site: NamedImages, fetch: FetchParams, params: ImagesParams, out: Path, storage: StorageParams) -> Counter[str]:
    """Fetch what ``site`` names into ``out``: WARC files, the links, their outcomes, ``sources.json``; counts.

    Raises:
        VitrailError: no links, or not one image that could be fetched.
    """
    sources = register(site.source, storage, ("warc", "links"))
    # Not the manners: a fetch that is slowed down half-way keeps what was fetched.
    numbers = [fetch.max_bytes, params.partitions, params.max_page_bytes]
    policy = fetch.policy.model_dump(mode="json")
    work = work_folder(out, fingerprint(site.model_dump(), sources.model_dump(), policy, numbers)[:16])
    counts = Counter({f"left-{why}": count for why, count in sources.left.items()})
    with kept_workers(params.executor):
        links = _links(_scans(site, sources, params, fetch, work, storage), params, work, counts)
        items = _partitions(site, links, params, fetch, work, counts)
        results = list(map_shards(fetch_partition, items, params.executor))
    for outcomes in results:
        counts.update({f"image-{outcome}": number for outcome, number in outcomes.items()})
    if not counts["image-ok"]:
        raise VitrailError(f"{site.source}: not one image could be fetched ({_listed(counts)})")
    with atomic_dir(out) as folder:
        warcs = [path for item in items for path in sorted(work.glob(f"{item.prefix}-*.warc"))]
        for path in warcs:
            place(path, folder / path.name)
        assemble(folder / LINKS_NAME, parts(work / _ALL_LINKS, NAMED_LINKS), NAMED_LINKS)
        with PartRowWriter(folder / OUTCOMES_NAME, OUTCOMES) as writer:
            for item in items:
                write_outcomes(item, writer)
        files = tuple(
            SourceFile(path=path.name, kind="warc", bytes=path.stat().st_size, sha256=digest(path)) for path in warcs
        )
        Sources(root="", files=files, links=LINKS_NAME, outcomes=OUTCOMES_NAME).save(folder)
    return counts


def finished(out: Path) -> None:
    """Remove the work folder: ``out`` is complete."""
    shutil.rmtree(out.parent / f".{out.name}.work", ignore_errors=True)


def _scans(
    site: NamedImages, sources: Sources, params: ImagesParams, fetch: FetchParams, work: Path, storage: StorageParams
) -> list[ScanItem]:
    """The scan of each file that names images."""
    store = sources.store(Path(), storage)
    return [
        ScanItem(
            store,
            file.path,
            work / f"scan-{n:07d}",
            fetch.policy,
            params.max_page_bytes,
            n,
            site.columns,
            params.sandbox,
        )
        for n, file in enumerate(sources.files)
    ]


def _links(items: list[ScanItem], params: ImagesParams, work: Path, counts: Counter[str]) -> Path:
    """The unique links of all files."""
    tables = []
    for result in track(map_shards(scan_file, items, params.executor), "scan", len(items), unit="files"):
        counts.update(result.counts)
        tables.append(result.links)
    links = work / _UNIQUE
    if not links.exists():
        unique_links(tables, links, params.memory)
    if not (work / _ALL_LINKS).exists():
        with PartWriter(work / _ALL_LINKS, NAMED_LINKS) as writer:
            for batch in link_batches(tables):
                writer.write(batch)
    return links


def _partitions(
    site: NamedImages, links: Path, params: ImagesParams, fetch: FetchParams, work: Path, counts: Counter[str]
) -> list[PartitionItem]:
    """Addresses that policy lets through, by host over the partitions."""
    policy = Policy(fetch.policy)
    targets = work / "targets.parquet"
    with RowWriter(targets, TARGETS) as writer:
        for link in iter_rows(links):
            counts["links"] += 1
            url = str(link["url"])
            reason = policy.decide(url, str(link["page"]), bool(link["opt_out"]), {}) or str(link["reason"])
            if reason:
                counts[f"link-{reason}"] += 1
            elif site.limit is None or writer.rows < site.limit:
                writer.add({"url": url, "partition": partition_of(url, params.partitions), "shuffle": shuffle_of(url)})
            else:
                counts["link-limit"] += 1
    if not counts["links"]:
        raise VitrailError(f"{site.source}: not one image link in it ({_listed(counts)})")
    items = []
    for number in range(params.partitions):
        addresses = work / f"addresses-{number:04d}.parquet"
        count = shuffled(targets, number, addresses, params.memory)
        items.append(PartitionItem(addresses, work, f"images-{number:04d}", count, fetch, params))
    return items


def fetch_partition(item: PartitionItem) -> Counter[str]:
    """Fetch one partition's addresses that have no line in its ledger yet; addresses by outcome, all told."""
    with _ledger(item) as ledger:
        try:
            asyncio.run(_fetch(item, ledger))
        except BaseExceptionGroup as faults:  # a full disk, say: one of them tells it
            raise faults.exceptions[0] from None
        return ledger.counts()


async def _fetch(item: PartitionItem, ledger: Ledger) -> None:
    """Fetch in any order: an address that waits for its host keeps no other one waiting."""
    waiting = asyncio.Semaphore(item.images.waiting)
    progress = Progress(f"fetch {item.prefix}", item.count, unit="images")
    async with Fetcher(item.fetch, item.images.in_flight) as fetcher, asyncio.TaskGroup() as group:

        async def one(number: int, url: str) -> None:
            try:
                ledger.write(number, await fetcher.fetch(url, image=True))
                progress.advance()
            finally:
                waiting.release()

        for number, row in enumerate(iter_rows(item.addresses)):
            if ledger.done(number):
                progress.done += 1
                continue
            await waiting.acquire()
            group.create_task(one(number, str(row["url"])))
    progress.close()


def _ledger(item: PartitionItem) -> Ledger:
    agent = f"{item.fetch.policy.token} (+{item.fetch.contact})"
    info = {"software": "vitrail", "robots": "obey", "http-header-user-agent": agent}
    return Ledger(item.folder, item.prefix, item.count, item.images.warc_bytes, info)


def write_outcomes(item: PartitionItem, writer: RowWriter) -> None:
    """Write how each of a partition's addresses ended (``tables.OUTCOMES``)."""
    with _ledger(item) as ledger:
        for number, row in enumerate(iter_rows(item.addresses)):
            outcome, status = ledger.outcome(number)
            writer.add({"url": row["url"], "outcome": outcome, "status": status, "kind": "image"})


def partition_of(url: str, partitions: int) -> int:
    """The partition of an address: that of its host."""
    host = (urlsplit(url).hostname or "").encode()
    return int.from_bytes(hashlib.sha256(host).digest()[:8], "big") % partitions


def shuffle_of(url: str) -> int:
    """A place in an order in which neighbours lie on different hosts."""
    return int.from_bytes(hashlib.sha256(url.encode("utf-8", "surrogatepass")).digest()[:8], "big", signed=True)


def place(path: Path, target: Path) -> None:
    """Make ``path`` appear as ``target`` too: what is there already stays whole until the output is complete."""
    try:
        os.link(path, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, target)


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)
