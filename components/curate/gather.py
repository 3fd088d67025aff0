"""Joins what the scan found: one row an image address, with the policy's decision and the place of its bytes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.curate.examine import Place
from components.errors import VitrailError
from components.executor import ExecutorParams, map_shards
from components.images.sandbox import SandboxParams
from components.progress import track
from components.storage import Store
from components.web.keys import key_of
from components.web.link_table import iter_rows, join_tables
from components.web.listing import shown
from components.web.policy import Policy
from components.web.robots import Rules, rules_for
from components.web.scan import ScanItem, ScanResult, scan_file
from components.web.sources import Sources
from components.web.unique import MemoryParams, unique_links

_MAX_REDIRECTS = 5
_LINK_TABLE = 1 << 22  # files of a crawl count from here, behind those of a table of links that came with it
_OUTCOME_REASONS = {
    "http-error": "http-error",
    "robots": "robots-disallowed",
    "restricted": "restricted-domain",
    "refused-address": "refused-address",
    "redirects": "too-many-redirects",
    "dns": "unreachable",
    "tls": "unreachable",
    "connection": "unreachable",
    "circuit-open": "unreachable",
    "timeout": "timed-out",
    "too-large": "too-many-bytes",
    "opt-out": "opt-out",
    "not-an-image": "not-an-image",
}
Row = dict[str, Any]


class NothingFound(VitrailError):
    """Files of one kind hold no image and name none; files of another kind may. ``counts`` say what was found."""

    def __init__(self, message: str, counts: Counter[str]) -> None:
        super().__init__(message)
        self.counts = counts


@dataclass
class Gathered:
    """Index rows in the order in which links were met, bytes' places by key, counts for the report, and all links."""

    rows: list[Row] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    links: Path | None = None  # every link met; None where no page spoke of the images

    def add(self, other: Gathered) -> None:
        """Take in the rows of files of another kind; an address that is known already is counted and left."""
        known = {row["key"] for row in self.rows}
        new = [row for row in other.rows if row["key"] not in known]
        self.counts.update(other.counts)
        self.counts["repeated-address"] += len(other.rows) - len(new)
        self.rows += new
        self.places |= {key: place for key, place in other.places.items() if key not in known}
        self.links = self.links or other.links


def blank_row(url: str, page: str = "", alt: str = "", source: str = "", offset: int = -1, licence: str = "") -> Row:
    """An index row about which nothing is known yet."""
    return {
        "key": key_of(url), "url": url, "page": page, "alt": alt, "licence": licence,
        "source": source, "source_offset": offset,
        "status": "kept", "reason": "", "decisions": [], "duplicate_of": "", "sha256": "", "format": "",
        "width": 0, "height": 0, "pca_hash": "", "nsfw": float("nan"), "faces": 0, "face_boxes": [], "face_scores": [],
        "shard": "", "offset": -1, "length": 0, "stored_sha256": "",
    }  # fmt: skip


def gather_warc(
    sources: Sources, store: Store, policy: Policy, work: Path, max_page_bytes: int, executor: ExecutorParams,
    memory: MemoryParams, crawl: Path, sandbox: SandboxParams,
) -> Gathered:  # fmt: skip
    """Scan every WARC file and join links (theirs, and those of the table that came with them) with responses.

    Raises:
        VitrailError: no response, or no image link, in all of the files together.
    """
    items = [
        ScanItem(
            store,
            file.path,
            work / f"scan-{number:07d}",
            policy.params,
            max_page_bytes,
            _LINK_TABLE + number,
            sandbox=sandbox,
        )
        for number, file in enumerate(sources.of("warc"))
    ]
    results = list(track(map_shards(scan_file, items, executor), "scan", len(items), unit="WARC files"))
    found = Gathered()
    robots: dict[str, Rules] = {}
    for result in results:
        found.counts.update(result.counts)
        warn_of_damage(
            store, result.name, result.counts, f"the {result.counts['responses']} responses that can be read"
        )
        for site, (status, body) in result.robots.items():
            robots[site] = rules_for(status, body.encode("latin-1"), policy.params.token)
    where = sources.root or "the crawl"
    if not found.counts["responses"]:
        faults = {kind: count for kind, count in found.counts.items() if kind.startswith("warc-")}
        raise NothingFound(
            f"{where}: no HTTP response could be read from {len(items)} WARC files {faults or ''}; are they whole?",
            found.counts,
        )
    table, found.links = work / "links.parquet", work / "all-links.parquet"
    tables = [*([crawl / sources.links] if sources.links else []), *(result.links for result in results)]
    if not table.exists():
        unique_links(tables, table, memory)
    if not found.links.exists():
        join_tables(tables, found.links)
    links = {str(link["url"]): link for link in iter_rows(table)}
    if not links:
        raise NothingFound(
            f"{where}: {found.counts['pages']} HTML pages in {len(items)} WARC files, no image link on any of them",
            found.counts,
        )
    responses = _responses(results, links)
    outcomes = _outcomes(crawl / sources.outcomes) if sources.outcomes else {}
    for url, link in links.items():
        row = blank_row(url, str(link["page"]), str(link["alt"]), licence=str(link["licence"]))
        reason, heard, response = _judge(url, link, responses, policy, robots)
        if reason in ("not-fetched", "http-error", "cut-short") and (outcome := outcomes.get(url)):
            reason = _OUTCOME_REASONS.get(outcome, reason)  # the fetch knows better why
            heard.append(f"fetch: {outcome}")
        row["reason"], row["decisions"] = reason, heard
        if response is not None:
            file, at = response["file"], response["offset"]
            row["source"], row["source_offset"] = shown(file), at
            if not reason:
                found.places[row["key"]] = Place(row["key"], file, at, response["length"], "warc")
        found.rows.append(row)
    return found


def _outcomes(path: Path) -> dict[str, str]:
    """How the fetch of each address ended, where it did not end well."""
    return {str(row["url"]): str(row["outcome"]) for row in iter_rows(path) if row["outcome"] != "ok"}


def _responses(results: list[ScanResult], links: Mapping[str, Row]) -> dict[str, Row]:
    """Responses to linked addresses and to what they redirect to; a 200 goes before any other."""
    redirects = {
        str(row["url"]): str(row["location"])
        for result in results
        for row in iter_rows(result.responses)
        if row["location"]
    }
    wanted = set(links)
    for url in links:
        for _ in range(_MAX_REDIRECTS):
            if not (url := redirects.get(url, "")):
                break
            wanted.add(url)
    responses: dict[str, Row] = {}
    for result in results:
        for row in iter_rows(result.responses):
            url = str(row["url"])
            if url in wanted and (url not in responses or (row["status"] == 200 != responses[url]["status"])):
                responses[url] = {**row, "file": result.name}
    return responses


def _judge(
    url: str, link: Row, responses: Mapping[str, Row], policy: Policy, robots: Mapping[str, Rules]
) -> tuple[str, list[str], Row | None]:
    """Why the link is dropped ("" if it is not), what decided, and the response with its bytes, redirects followed."""
    response: Row | None = None
    heard: list[str] = []
    for _ in range(_MAX_REDIRECTS + 1):
        reason, said = policy.judge(url, link["page"], link["opt_out"], robots, link["said"])
        heard += [line for line in said if line not in heard]
        if not reason and response is None and link["reason"]:
            reason = link["reason"]
            heard.append(f"page: {reason}")
        if reason:
            return reason, heard, response
        response = responses.get(url)
        if response is None:
            return "not-fetched", heard, None
        if response["said"]:
            heard.append(f"response {response['status']}: {response['said']}")
            if policy.params.respect_opt_out:
                return "opt-out", heard, response
        if not response["location"]:
            break
        url = response["location"]
        heard.append(f"response {response['status']}: goes on to {url}")
    if response is None or response["status"] != 200:
        return "http-error", [*heard, f"response {response['status']}" if response else "no response"], response
    heard.append("response 200" + (", cut short" if response["cut"] else ""))
    return ("cut-short" if response["cut"] else ""), heard, response


def warn_of_damage(store: Store, name: str, counts: Mapping[str, int], used: str) -> None:
    """One line on stderr where the file ``name`` is damaged."""
    faults = {kind: n for kind, n in counts.items() if kind.startswith(("warc-", "tar-")) and n}
    if faults:
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
        print(f"warning: {store.root}/{shown(name)}: damaged ({listed}); {used} are used", file=sys.stderr, flush=True)
