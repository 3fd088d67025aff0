"""Joins what the scan found: one row an image address, with the policy's decision and the place of its bytes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from components.curate.examine import Place
from components.curate.policy import Policy
from components.curate.robots import Rules, rules_for
from components.curate.scan import ScanItem, ScanResult, iter_rows, key_of, scan_warc
from components.curate.sources import Sources
from components.errors import VitrailError
from components.executor import ExecutorParams, map_shards
from components.progress import track
from components.storage import Store

_MAX_REDIRECTS = 5
Row = dict[str, Any]


@dataclass
class Gathered:
    """Index rows in the order in which links were met, bytes' places by key, and counts for the report."""

    rows: list[Row] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


def blank_row(url: str, page: str = "", alt: str = "", source: str = "", offset: int = -1) -> Row:
    """An index row about which nothing is known yet."""
    return {
        "key": key_of(url), "url": url, "page": page, "alt": alt, "source": source, "source_offset": offset,
        "status": "kept", "reason": "", "duplicate_of": "", "sha256": "", "format": "", "width": 0, "height": 0,
        "pca_hash": "", "nsfw": float("nan"), "faces": 0, "face_boxes": [], "shard": "", "offset": -1, "length": 0,
        "stored_sha256": "",
    }  # fmt: skip


def gather_images(sources: Sources) -> Gathered:
    """A row for every file of a folder of images; no page spoke of them, so no policy applies."""
    found = Gathered()
    for file in sources.files:
        row = blank_row(f"file:{quote(file.path)}", source=sources.root)
        found.rows.append(row)
        found.places[row["key"]] = Place(row["key"], file.path, -1, 0)
    found.counts["files"] = len(sources.files)
    return found


def gather_warc(
    sources: Sources, store: Store, policy: Policy, work: Path, max_page_bytes: int, executor: ExecutorParams
) -> Gathered:
    """Scan every WARC file and join links with responses.

    Raises:
        VitrailError: no response, or no image link, in all of the files together.
    """
    items = [
        ScanItem(store, file.path, work / f"scan-{number:05d}", policy.params, max_page_bytes)
        for number, file in enumerate(sources.files)
    ]
    results = list(track(map_shards(scan_warc, items, executor), "scan", len(items), unit="WARC files"))
    found = Gathered()
    robots: dict[str, Rules] = {}
    for result in results:
        found.counts.update(result.counts)
        _warn(store, result)
        for site, (status, body) in result.robots.items():
            robots[site] = rules_for(status, body.encode("latin-1"), policy.params.token)
    where = sources.root or "the crawl"
    if not found.counts["responses"]:
        faults = {kind: count for kind, count in found.counts.items() if kind.startswith("warc-")}
        raise VitrailError(
            f"{where}: no HTTP response could be read from {len(items)} WARC files {faults or ''}; are they whole?"
        )
    links = _links(results)
    if not links:
        raise VitrailError(
            f"{where}: {found.counts['pages']} HTML pages in {len(items)} WARC files, no image link on any of them"
        )
    responses = _responses(results, links)
    for url, link in links.items():
        row = blank_row(url, link["page"], link["alt"])
        reason, response = _judge(url, link, responses, policy, robots)
        row["reason"] = reason
        if response is not None:
            row["source"], row["source_offset"] = response["file"], response["offset"]
            if not reason:
                found.places[row["key"]] = Place(row["key"], response["file"], response["offset"], response["length"])
        found.rows.append(row)
    return found


def _links(results: Iterable[ScanResult]) -> dict[str, Row]:
    """The first link to each address; opted out when any page that names it opts out."""
    links: dict[str, Row] = {}
    for result in results:
        for link in iter_rows(result.links):
            known = links.setdefault(str(link["url"]), link)
            known["opt_out"] = known["opt_out"] or link["opt_out"]
    return links


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
) -> tuple[str, Row | None]:
    """Why the link is dropped ("" when it is not), and the response that holds its bytes, redirects followed."""
    response: Row | None = None
    for _ in range(_MAX_REDIRECTS + 1):
        reason = policy.decide(url, link["page"], link["opt_out"], robots)
        if reason or (response is None and link["reason"]):
            return reason or link["reason"], response
        response = responses.get(url)
        if response is None:
            return "not-fetched", None
        if response["opt_out"] and policy.params.respect_opt_out:
            return "opt-out", response
        if not response["location"]:
            break
        url = response["location"]
    if response is None or response["status"] != 200:
        return "http-error", response
    return ("cut-short" if response["cut"] else ""), response


def _warn(store: Store, result: ScanResult) -> None:
    faults = {kind: count for kind, count in result.counts.items() if kind.startswith("warc-") and count}
    if faults:
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
        print(
            f"warning: {store.root}/{result.name}: damaged ({listed}); the {result.counts['responses']} responses that"
            " can be read are used",
            file=sys.stderr,
            flush=True,
        )
