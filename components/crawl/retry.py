"""Ask again, after a finished crawl, only for what could not be got: ``crawl retry --reasons timed-out,unreachable``.

The answers go to WARC files of their own beside the first ones, the table ``outcomes`` says how each address ended
last, and curation takes an address's first whole answer. The output is replaced at once, or not at all; a retry that
was killed carries on. ``dvc commit -f crawl`` then makes the output the stage's new version.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from components.context import StageContext
from components.crawl.fetch_images import (
    OUTCOMES_NAME,
    TARGETS,
    PartitionItem,
    digest,
    fetch_partition,
    finished,
    partition_of,
    place,
    shuffle_of,
    write_outcomes,
)
from components.crawl.spider import CrawlParams, Recrawl, crawl_again
from components.crawl.stage import WebSite, hosts_of, site_of
from components.errors import VitrailError
from components.executor import kept_workers, map_shards
from components.lock import hold
from components.params import fingerprint
from components.storage import atomic_dir, atomic_file
from components.tables.database import MemoryParams, database, write_query
from components.tables.parts import digest as table_digest
from components.tables.schemas import OUTCOMES
from components.web.rules.policy import Policy
from components.web.sources.link_table import RowWriter
from components.web.sources.outcomes import outcome_files, outcome_rows, outcomes_of
from components.web.sources.sources_json import SourceFile, Sources
from components.web.sources.unique import shuffled
from components.web.work import work_folder

_LATEST = """
    SELECT url, outcome, status, kind FROM (
        SELECT url, outcome, status, kind, 0 AS age FROM read_parquet($again)
        UNION ALL SELECT url, outcome, status, kind, 1 AS age FROM read_parquet($before)
    ) QUALIFY row_number() OVER (PARTITION BY url, kind ORDER BY age) = 1 ORDER BY kind DESC, url
"""


@dataclass(frozen=True)
class _Round:
    """One retry: its number, what the crawl holds, and what to ask for."""

    number: int
    out: Path
    outcomes: Path  # of `out`
    work: Path
    wanted: frozenset[str]  # outcomes

    def rows(self) -> Iterator[dict[str, object]]:
        """The addresses to ask for, as the crawl's table of outcomes has them."""
        return (row for row in outcome_rows(self.outcomes) if row["outcome"] in self.wanted)


def run(reasons: Collection[str], params: CrawlParams, source: str, out: Path, context: StageContext) -> dict[str, int]:
    """Ask for the addresses in ``out`` that ended for one of ``reasons`` again, with ``params``' manners.

    Args:
        reasons: as the index has them (``timed-out``), or the crawl's own outcomes (``timeout``).
        source: the .yaml that was crawled; of a crawl of sites it says which hosts' links are followed.

    Returns:
        How many were asked for, and how these ended now, by outcome.

    Raises:
        VitrailError: no crawl is there, an unknown reason, or another run is at work on ``out``.
    """
    wanted = outcomes_of(reasons)
    with hold(out):
        sources = Sources.load(out)
        outcomes = out / (sources.outcomes or OUTCOMES_NAME)
        if not outcomes.exists():
            raise VitrailError(f"{out}: no {OUTCOMES_NAME}, so nothing was fetched here that could be asked for again")
        if "kind" not in pq.read_schema(outcome_files(outcomes)[0]).names:
            raise VitrailError(f"{out}: crawled by an older version, which kept too little to ask again; crawl anew")
        number = 1 + max((int(path.name.split("-")[1]) for path in out.glob("retry-*-*.warc*")), default=0)
        limits = params.fetch.max_bytes, params.images.partitions
        state = [number, sorted(wanted), table_digest(outcomes, OUTCOMES), *limits]
        work = work_folder(out, fingerprint(state, params.fetch.policy.model_dump(mode="json"))[:16])
        this = _Round(number, out, outcomes, work, wanted)
        if next(this.rows(), None) is None:
            finished(out)
            return {"asked": 0}
        ask = _images if sources.links else _sites
        warcs, again = ask(this, params, source)
        counts = _replace(this, sources, warcs, again, params.images.memory)
        finished(out)
    return counts


def _images(this: _Round, params: CrawlParams, source: str) -> tuple[list[Path], Path]:
    """Ask for named images again; their WARC files, and how they ended."""
    images, policy = params.images, Policy(params.fetch.policy)
    with RowWriter(this.work / "targets.parquet", TARGETS) as writer:
        for row in this.rows():
            url = str(row["url"])
            if not policy.decide(url, "", False, {}):  # its lists may have grown
                part = partition_of(url, images.partitions)
                writer.add({"url": url, "partition": part, "shuffle": shuffle_of(url)})
    items = []
    for part in range(images.partitions):
        addresses = this.work / f"addresses-{part:04d}.parquet"
        count = shuffled(this.work / "targets.parquet", part, addresses, images.memory)
        prefix = f"retry-{this.number:02d}-{part:04d}"
        items.append(PartitionItem(addresses, this.work, prefix, count, params.fetch, images))
    with kept_workers(images.executor):
        list(map_shards(fetch_partition, items, images.executor))
    with RowWriter(this.work / "again.parquet", OUTCOMES) as writer:
        for item in items:
            write_outcomes(item, writer)
    warcs = [path for item in items if item.count for path in sorted(this.work.glob(f"{item.prefix}-*.warc"))]
    return warcs, this.work / "again.parquet"


def _sites(this: _Round, params: CrawlParams, source: str) -> tuple[list[Path], Path]:
    """Ask for pages and images of a crawl of sites again, and for what these pages name."""
    site = site_of(Path(source)) if source.endswith((".yaml", ".yml")) else None
    if not isinstance(site, WebSite):
        raise VitrailError(f"{source}: not the description of a crawl of sites (kind: web), as {this.out} is; "
                           "name that with --source")  # fmt: skip
    again = Recrawl(
        (str(row["url"]) for row in this.rows() if row["kind"] == "page"),
        (str(row["url"]) for row in this.rows() if row["kind"] == "image"),
        (str(row["url"]) for row in outcome_rows(this.outcomes)),
    )
    warc = this.work / f"retry-{this.number:02d}-site.warc.gz"
    asyncio.run(crawl_again(again, hosts_of(site), params, warc, this.work / "site.journal"))
    return [warc], this.work / OUTCOMES_NAME


def _replace(this: _Round, sources: Sources, warcs: list[Path], again: Path, memory: MemoryParams) -> dict[str, int]:
    """Put the new output in place of the old one, whose other files it keeps."""
    out = this.out
    replaced = {this.outcomes.name, "sources.json", "crawl.json"}
    counts = {name: count for name, count in json.loads((out / "crawl.json").read_text()).items()
              if not name.startswith(("page-", "image-")) or name.endswith("-limit")}  # fmt: skip
    with atomic_dir(out) as folder:
        for path in sorted(path for path in out.iterdir() if path.name not in replaced):
            if path.is_dir():
                shutil.copytree(path, folder / path.name, copy_function=lambda old, new: place(Path(old), Path(new)))
            else:
                place(path, folder / path.name)
        for path in warcs:
            place(path, folder / path.name)
        with database(memory, this.work) as connection:
            both = {"again": outcome_files(again), "before": outcome_files(this.outcomes)}
            values: dict[str, object] = {name: [str(file) for file in files] for name, files in both.items()}
            write_query(connection, _LATEST, values, folder / OUTCOMES_NAME, OUTCOMES)
        ended = Counter(f"{row['kind']}-{row['outcome']}" for row in outcome_rows(folder / OUTCOMES_NAME))
        new = tuple(
            SourceFile(path=path.name, kind="warc", bytes=path.stat().st_size, sha256=digest(path)) for path in warcs
        )
        sources.model_copy(update={"files": (*sources.files, *new), "outcomes": OUTCOMES_NAME}).save(folder)
        with atomic_file(folder / "crawl.json", "w") as file:
            json.dump(dict(sorted((counts | ended).items())), file, indent=1)
    now = Counter(f"{row['kind']}-{row['outcome']}" for row in outcome_rows(again))
    return {"asked": sum(now.values()), **dict(sorted(now.items()))}
