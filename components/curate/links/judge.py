"""Second pass: which addresses may be used, and where their bytes are. One work item is one part of addresses."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.curate.links.addresses import Met
from components.curate.links.gather import MAX_REDIRECTS
from components.curate.links.places import PLACES, write_places
from components.storage import atomic_file
from components.tables.parts import PART_ROWS
from components.web.rules.keys import key_of
from components.web.rules.policy import Policy, PolicyParams
from components.web.rules.robots import Rules, rules_for
from components.web.sources.listing import shown
from components.web.sources.outcomes import OUTCOME_REASONS

JUDGED = pa.schema(
    [("row", pa.int64()), ("key", pa.string()), ("url", pa.string()), ("page", pa.string()), ("alt", pa.string()),
     ("licence", pa.string()), ("source", pa.string()), ("source_offset", pa.int64()), ("reason", pa.string()),
     ("decisions", pa.list_(pa.string()))]
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class JudgeItem:
    """One part of addresses to judge."""

    number: int  # of the part
    addresses: Path
    met: Met  # without its parts and counts
    policy: PolicyParams
    work: Path
    chunk: int  # images a work item of the next pass


@dataclass(frozen=True)
class Judged:
    """A part that was judged: rows, and places of the bytes of those that may be used."""

    path: Path  # :data:`JUDGED`
    places: Path
    rows: int
    fetched: int  # rows of ``places``


def items(met: Met, policy: PolicyParams, work: Path, chunk: int) -> Iterable[JudgeItem]:
    """A work item for every part of ``met``."""
    alone = Met([], answers=met.answers, robots=met.robots, outcomes=met.outcomes)
    return (JudgeItem(number, part, alone, policy, work, chunk) for number, part in enumerate(met.parts))


def judge(item: JudgeItem) -> Judged:
    """Write :data:`JUDGED` and the places of one part; skipped if both are in the work folder."""
    out, places = item.work / f"judged-{item.number:06d}.parquet", item.work / f"places-{item.number:06d}.parquet"
    if not out.exists():
        rows, found = _judged(item)
        write_places(places, found, item.chunk)
        with atomic_file(out) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=JUDGED), file, compression="zstd")
    counts = (int(pq.read_metadata(path).num_rows) for path in (out, places))
    return Judged(out, places, *counts)


def _judged(item: JudgeItem) -> tuple[list[Row], pa.Table]:
    policy = Policy(item.policy)
    rules = {
        row["origin"]: rules_for(row["status"], row["body"], item.policy.token) for row in _of_part(item, "robots")
    }
    answers: dict[int, dict[str, Row]] = defaultdict(dict)
    for answer in _of_part(item, "answers"):
        answers[answer["row"]][answer["url"]] = answer
    outcomes = {row["row"]: row["outcome"] for row in _of_part(item, "outcomes")}
    rows: list[Row] = []
    places: list[Row] = []
    for link in pq.read_table(item.addresses).to_pylist():
        row = {name: link[name] for name in ("row", "url", "page", "alt", "licence")} | {"key": key_of(link["url"])}
        row |= {"source": link["source"], "source_offset": link["offset"], "reason": "", "decisions": []}
        place = {"key": row["key"], "format": "", "sha256": ""} | {
            name: link[name] for name in ("row", "file", "offset", "length", "kind")
        }
        if link["kind"] == "warc":
            row["reason"], row["decisions"], response = _judge(link, answers.get(link["row"], {}), policy, rules)
            if row["reason"] in ("not-fetched", "http-error", "cut-short"):
                _as_fetched(row, outcomes.get(link["row"], ""))
            if response is not None:
                row["source"], row["source_offset"] = shown(os.fsdecode(response["file"])), response["offset"]
                place |= {name: response[name] for name in ("file", "offset", "length")}
        elif link["of_web"]:
            row["reason"], row["decisions"] = policy.judge(link["url"], "", False, {})
        if not row["reason"]:
            places.append(place)
        rows.append(row)
    return rows, pa.Table.from_pylist(places, schema=PLACES)


def _of_part(item: JudgeItem, name: str) -> list[Row]:
    """The rows of a joined table that belong to the item's part."""
    path: Path | None = getattr(item.met, name)
    if path is None:
        return []
    only = pc.field("part") == item.number
    if name != "robots":
        first = item.number * PART_ROWS
        only = (pc.field("row") >= first) & (pc.field("row") < first + PART_ROWS)
    found: list[Row] = pq.read_table(path, filters=only).to_pylist()
    return found


def _as_fetched(row: Row, outcome: str) -> None:
    """The fetch knows better why there are no bytes."""
    if outcome:
        row["reason"] = OUTCOME_REASONS.get(outcome, row["reason"])
        row["decisions"].append(f"fetch: {outcome}")


def _judge(
    link: Row, answers: Mapping[str, Row], policy: Policy, robots: Mapping[str, Rules]
) -> tuple[str, list[str], Row | None]:
    """Why the link is dropped ("" if it is not), what decided, and the response with its bytes, redirects followed."""
    url: str = link["url"]
    response: Row | None = None
    heard: list[str] = []
    for _ in range(MAX_REDIRECTS + 1):
        reason, said = policy.judge(url, link["page"], link["opt_out"], robots, link["said"])
        heard += [line for line in said if line not in heard]
        if not reason and response is None and link["reason"]:
            reason = link["reason"]
            heard.append(f"page: {reason}")
        if reason:
            return reason, heard, response
        response = answers.get(url)
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
