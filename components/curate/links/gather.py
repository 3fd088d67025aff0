"""First passes: every image address of the sources once, numbered in the order in which it was met.

WARC files come first, then tar shards, then single files. The result is a row of parts (``Met``): each holds the next
:data:`PART_ROWS` addresses, so that all later passes work on one part, or on one chunk of a part, at a time.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components.curate.links.addresses import ADDRESSES, Gathering, Met, NothingFound, rows_of, warn_of_damage
from components.curate.links.gather_files import of_images, of_tars
from components.executor import map_shards
from components.progress import track
from components.tables.database import database, stream, write_file
from components.tables.parts import PART_ROWS, PartWriter, opened, parts
from components.tables.schemas import LINKS, NAMED_LINKS
from components.web.sources.kinds import SourceKind
from components.web.sources.link_table import link_batches
from components.web.sources.outcomes import outcome_files
from components.web.sources.scan import ScanItem, ScanResult, scan_file
from components.web.sources.sources_json import Sources
from components.web.sources.unique import UNIQUE

MAX_REDIRECTS = 5
_LINK_TABLE = 1 << 22  # files of a crawl count from here, behind those of a table of links that came with it
_ORIGIN = r"regexp_extract(lower({url}), '^[a-z]+://[^/?#]*')"  # as components.web.rules.policy.origin

# Numbers of a kind's addresses, from 0, become those of all kinds: WARC files' own reach to 2^63, other files' to 2^62.
_SHIFT: dict[SourceKind, int] = {"warc": -(1 << 63), "tars": 0, "images": 1 << 62}
# Of one kind, then over kinds: the first row of an address stays.
_FIRST = """
    SELECT address.* FROM read_parquet($tables) AS address
    JOIN (SELECT min("row") AS "row" FROM read_parquet($tables) GROUP BY url) AS first USING ("row")
    ORDER BY "row"
"""
_NAMED = f"""
    SELECT position AS "row", url, page, alt, licence, reason, opt_out, said, true AS of_web, 'warc' AS kind,
           '' AS source, ''::BLOB AS file, -1::BIGINT AS "offset", -1::BIGINT AS length
    FROM ({UNIQUE})
"""
# Of the answers to one address the first whole 200 counts, or else the first 200, or else the first: one that was cut
# short may have been asked for again.
_ANSWERS = """
    SELECT answer.* FROM read_parquet($responses) AS answer
    JOIN (
        SELECT coalesce(
            min(position) FILTER (status = 200 AND NOT cut), min(position) FILTER (status = 200), min(position)
        ) AS position
        FROM read_parquet($responses) GROUP BY url
    ) AS first USING (position)
"""
_ROBOTS = f"""
    SELECT wanted.part, robots.origin, robots.status, robots.body
    FROM (
        SELECT DISTINCT part, origin FROM (
            SELECT "row" // $rows AS part, {_ORIGIN.format(url="url")} AS origin
            FROM read_parquet($addresses) WHERE kind = 'warc'
            UNION ALL
            SELECT "row" // $rows, {_ORIGIN.format(url="location")} FROM read_parquet($answers) WHERE location <> ''
        )
    ) AS wanted
    JOIN (
        SELECT all_robots.* FROM read_parquet($robots) AS all_robots
        JOIN (SELECT max(position) AS position FROM read_parquet($robots) GROUP BY origin) AS last USING (position)
    ) AS robots USING (origin)
    ORDER BY wanted.part, robots.origin
"""


def gather(sources: Sources, how: Gathering) -> Met:
    """Every address of ``sources`` once. A kind that holds nothing ends the run only where there is no other.

    Raises:
        VitrailError: nothing in the sources that can be read, or no image.
    """
    of_kind: dict[SourceKind, Callable[[Sources, Gathering], Met]] = {
        "warc": of_warc,
        "tars": of_tars,
        "images": of_images,
    }
    found, faults, counts = list[Met](), list[NothingFound](), Counter[str]()
    for kind, gathered in of_kind.items():
        if sources.of(kind):
            try:
                found.append(gathered(sources, how))
                counts.update(found[-1].counts)
            except NothingFound as fault:
                faults.append(fault)
                counts.update(fault.counts)
    if not found and faults:
        raise faults[0]
    for unread in faults:
        print(f"warning: {unread}", file=sys.stderr, flush=True)
    with database(how.memory, how.work) as connection:
        met = _joined(connection, found, how)
        kinds = sorted(how.work.glob("kind-*.parquet"))
        counts["repeated-address"] += rows_of(kinds) - rows_of(met.parts)
        counts.update({f"left-{why}": count for why, count in sources.left.items()})
        met = replace(met, counts=counts)
        return met if met.results is None else _with_answers(connection, met, sources, how)


def _joined(connection: Any, found: Sequence[Met], how: Gathering) -> Met:
    """The addresses of all kinds as one row of parts, numbered."""
    links = next((one.links for one in found if one.links is not None), None)
    results = next((one.results for one in found if one.results is not None), None)
    parts = _finished(how.work)
    if not parts:
        tables: list[str] = []
        for one in found:
            of_kind = how.work / f"kind-{one.kind}.parquet"
            shift = f'SELECT * REPLACE (("row"::HUGEINT + {_SHIFT[one.kind]})::BIGINT AS "row") FROM ({_FIRST})'
            write_file(connection, shift, {"tables": [str(path) for path in one.parts]}, of_kind)
            tables.append(str(of_kind))
        _numbered(stream(connection, _FIRST, {"tables": tables}), how.work)
    return Met(_finished(how.work), links=links, results=results)


def of_warc(sources: Sources, how: Gathering) -> Met:
    """Links of pages and of the table that came with them, one for each address."""
    files = sources.of("warc")
    items = [
        ScanItem(
            how.store, file.path, how.work / f"scan-{number:07d}", how.policy, how.max_page_bytes,
            _LINK_TABLE + number, sandbox=how.sandbox,
        )
        for number, file in enumerate(files)
    ]  # fmt: skip
    results: list[ScanResult] = []
    counts: Counter[str] = Counter()
    for result in track(map_shards(scan_file, items, how.executor), "scan", len(items), unit="WARC files"):
        results.append(result)
        counts.update(result.counts)
        used = f"the {result.counts['responses']} responses that can be read"
        warn_of_damage(how.store, result.name, result.counts, used)
    where = sources.root or "the crawl"
    if not counts["responses"]:
        faults = {kind: count for kind, count in counts.items() if kind.startswith("warc-")}
        raise NothingFound(
            f"{where}: no HTTP response could be read from {len(items)} WARC files {faults or ''}; are they whole?",
            counts,
        )
    named_links = _named_links(how.crawl / sources.links) if sources.links else []
    tables = [*named_links, *(result.links for result in results)]
    links = how.work / "all-links"
    if not links.exists():
        with PartWriter(links, LINKS) as writer:
            for batch in link_batches(tables):
                writer.write(batch)
    named = how.work / "named.parquet"
    if not named.exists():
        with database(how.memory, how.work) as connection:
            write_file(connection, _NAMED, {"tables": [str(table) for table in tables]}, named)
    if not rows_of([named]):
        raise NothingFound(
            f"{where}: {counts['pages']} HTML pages in {len(items)} WARC files, no image link on any of them", counts
        )
    return Met([named], "warc", links=links, results=results, counts=counts)


def _named_links(table: Path) -> list[Path]:
    """The parts of the links that a crawl began with (an older crawl has one file), checked."""
    files = parts(table, NAMED_LINKS)
    for file in files:
        opened(file, NAMED_LINKS).close()
    return files


def _with_answers(connection: Any, met: Met, sources: Sources, how: Gathering) -> Met:
    """``met`` with what is known of each address: answers along its redirects, robots.txt, how the fetch ended."""
    outcomes = how.crawl / sources.outcomes if sources.outcomes else None
    answers, robots, ended = _join(connection, met.parts, met.results or [], outcomes, how)
    return replace(met, answers=answers, robots=robots, outcomes=ended)


def _join(
    connection: Any, parts: Sequence[Path], results: Sequence[ScanResult], outcomes: Path | None, how: Gathering
) -> tuple[Path, Path, Path | None]:
    """Write what is known of each address: answers along its redirects, robots.txt by part, how the fetch ended."""
    work, addresses = how.work, [str(part) for part in parts]
    answers, robots, ended = work / "answers.parquet", work / "robots.parquet", work / "outcomes.parquet"
    if not answers.exists():
        first = work / "first-answers.parquet"
        write_file(connection, _ANSWERS, {"responses": [str(result.responses) for result in results]}, first)
        hops = [work / f"hop-{hop}.parquet" for hop in range(MAX_REDIRECTS + 1)]
        for hop, out in enumerate(hops):
            asked = "SELECT \"row\", url FROM read_parquet($asked) WHERE kind = 'warc'"
            if hop:
                asked = "SELECT \"row\", location AS url FROM read_parquet($asked) WHERE location <> ''"
            query = f"""SELECT asked."row", {hop} AS hop, answer.* FROM ({asked}) AS asked
                        JOIN read_parquet($first) AS answer USING (url)"""
            values: dict[str, object] = {"asked": [str(hops[hop - 1])] if hop else addresses, "first": str(first)}
            write_file(connection, query, values, out)
        query = 'SELECT * FROM read_parquet($hops) ORDER BY "row", hop'
        write_file(connection, query, {"hops": [str(path) for path in hops]}, answers)
        for path in (first, *hops):
            path.unlink()
    if not robots.exists():
        values = {"rows": PART_ROWS, "addresses": addresses, "answers": str(answers)}
        write_file(connection, _ROBOTS, values | {"robots": [str(result.robots) for result in results]}, robots)
    if outcomes is None:
        return answers, robots, None
    if not ended.exists():
        query = """SELECT address."row", max(fetched.outcome) AS outcome
                   FROM read_parquet($addresses) AS address JOIN read_parquet($outcomes) AS fetched USING (url)
                   WHERE fetched.outcome <> 'ok' GROUP BY address."row" ORDER BY address."row" """
        fetched = [str(file) for file in outcome_files(outcomes)]
        write_file(connection, query, {"addresses": addresses, "outcomes": fetched}, ended)
    return answers, robots, ended


def _numbered(batches: Iterable[pa.RecordBatch], work: Path) -> list[Path]:
    """Write ``batches`` as parts, their rows numbered from 0; the parts."""
    if finished := _finished(work):
        return finished
    at = 0
    with PartWriter(work / "addresses", ADDRESSES, PART_ROWS) as writer:
        for batch in batches:
            numbers = pa.array(np.arange(at, at + len(batch)))
            at += len(batch)
            writer.write(pa.RecordBatch.from_arrays([numbers, *batch.columns[1:]], schema=ADDRESSES))
    return _finished(work)


def _finished(work: Path) -> list[Path]:
    folder = work / "addresses"
    return sorted(folder.iterdir()) if folder.is_dir() else []
