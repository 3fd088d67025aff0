"""An image's whole story, from the pages that name it to the manifests that select it, as text to read.

Everything is read from what the stages left (index, links, audit, decisions, manifests); nothing is computed anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from components.descriptors.views import Views
from components.errors import VitrailError
from components.provenance.holders import manifests
from components.storage import StorageParams
from components.tables.parts import iter_matches, read_table
from components.tables.schemas import AUDIT, DECISIONS, INDEX, LINKS
from components.web.formats.urls import resolve
from components.web.rules.block_list import Forgotten
from components.web.rules.keys import key_of

SHOWN = 20  # pages, copies or manifests that are listed one by one
LINKS_NAME, AUDIT_NAME = "links", "audit"


def trace(
    query: str, curated: Path, dedup: Path, look: Sequence[Path], storage: StorageParams, forgotten: Sequence[Path] = ()
) -> str:
    """The story of every row that ``query`` (a key, an address, or a SHA-256 as crawled or as stored) names.

    ``dedup`` need not be there; ``look`` are folders to look for manifests in.

    Raises:
        VitrailError: no row of that name, or no index.
    """
    rows = find(query, curated)
    if not rows:
        taken = Forgotten.read(path for path in forgotten if path.exists())
        if query in taken.keys | taken.digests or taken.holds(query):
            return f"{query}: taken down; it is on {', '.join(map(str, forgotten))} and not in {curated}"
        raise VitrailError(
            f"{curated / 'index'}: no image of the key, address or SHA-256 {query!r}; it holds addresses as"
            " pages name them, whole and with their scheme"
        )
    return "\n\n".join("\n".join(_story(row, curated, dedup, look, storage)) for row in rows)


def find(query: str, curated: Path) -> list[dict[str, Any]]:
    """Index rows by key, address (normalised, or as it is), or SHA-256."""
    if re.fullmatch(r"[0-9a-f]{64}", query):
        only = (pc.field("sha256") == query) | (pc.field("stored_sha256") == query)
    elif re.fullmatch(r"[0-9a-f]{20}", query):
        only = pc.field("key") == query
    else:
        only = pc.field("key").isin([key_of(query), key_of(resolve("", query) or query)])
    rows: list[dict[str, Any]] = read_table(curated / "index", INDEX, only).to_pylist()
    return rows


def mentions(curated: Path, url: str) -> list[dict[str, Any]]:
    """Every link to ``url`` that was met; none where no page spoke of the images (a folder of them, say)."""
    path = curated / LINKS_NAME
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = read_table(path, LINKS, pc.field("url") == url).to_pylist()
    return sorted(rows, key=lambda row: int(row["position"]))


def _story(
    row: dict[str, Any], curated: Path, dedup: Path, look: Sequence[Path], storage: StorageParams
) -> Iterator[str]:
    outcome = "kept" if row["status"] == "kept" else f"dropped: {row['reason']}"
    yield row["url"]
    yield f"  key {row['key']}, {outcome}"
    yield from _block("named by", [_mention(one) for one in mentions(curated, row["url"])], "no page")
    yield from _block("policy", row["decisions"] or [], "none applies: no address of the web")
    where = _place(row["source"], row["source_offset"])
    yield from _block("bytes from", [where] if row["source"] else [], "nowhere: they were not fetched")
    facts = [f"{row['format']}, {row['width']} x {row['height']} pixels"] if row["format"] else []
    facts += [f"sha256 {row['sha256']}"] if row["sha256"] else []
    facts += [f"PCA hash {row['pca_hash']}"] if row["pca_hash"] else []
    yield from _block("decoded", facts, "no")
    yield from _block("duplicates", list(_duplicates(row, curated)), "none found")
    yield from _block("safety", list(_safety(row, curated)), "not looked at: dropped before")
    if row["shard"]:
        bytes_at = f"{row['shard']}, {row['length']:,} bytes at {row['offset']:,}"
        yield from _block("stored", [bytes_at, f"sha256 {row['stored_sha256']}"], "")
    yield from _block("dedup", list(_decided(row, dedup)), "no decision: dropped before, or the stage is still to run")
    held = manifests(look, storage, [row["key"]])
    selected = [f"{one.where}: weight {one.rows[0]['weight']:g}, {one.rows[0]['reason']}" for one in held]
    yield from _block("manifests", selected, "none selects it")


def _block(title: str, lines: Sequence[str], otherwise: str) -> Iterator[str]:
    yield f"  {title}"
    yield from (f"    {line}" for line in lines[:SHOWN])
    if len(lines) > SHOWN:
        yield f"    and {len(lines) - SHOWN:,} more"
    if not lines:
        yield f"    {otherwise}"


def _place(source: str, offset: int) -> str:
    return source + (f", record at {offset:,}" if offset >= 0 else "")


def _mention(link: dict[str, Any]) -> str:
    said = [f'alt "{link["alt"]}"'] if link["alt"] else []
    said += [f"licence {link['licence']}"] if link["licence"] else []
    said += [f"opts out: {link['said']}"] if link["said"] else []
    said += [link["reason"]] if link["reason"] else []
    page = link["page"] or "a table of addresses"
    return f"{page} ({_place(link['source'], link['source_offset'])})" + "".join(f"; {words}" for words in said)


def _duplicates(row: dict[str, Any], curated: Path) -> Iterator[str]:
    if row["duplicate_of"]:
        for kept in find(row["duplicate_of"], curated):
            yield f"repeats {kept['key']} {kept['url']} ({row['reason']})"
    for copy in read_table(curated / "index", INDEX, pc.field("duplicate_of") == row["key"]).to_pylist():
        yield f"repeated by {copy['key']} {copy['url']} ({copy['reason']})"


def _safety(row: dict[str, Any], curated: Path) -> Iterator[str]:
    path = curated / AUDIT_NAME
    for find in read_table(path, AUDIT, pc.field("key") == row["key"]).to_pylist() if path.exists() else ():
        box = ", ".join(f"{value:.0f}" for value in find["box"] or ())
        yield (
            f"{find['check']} ({find['model']}): {find['score']:.3f}, threshold {find['threshold']:g}"
            + (f", box {box}" if box else "")
            + f": {find['action']}"
        )


_DECIDED_BY = {
    "held-out": "held-out image or its copy",
    "held-out-identical": "held-out image",
    "self-duplicate": "copy",
}


def _decided(row: dict[str, Any], dedup: Path) -> Iterator[str]:
    path = dedup / "decisions"
    if not path.exists():
        return
    for one in read_table(path, DECISIONS, pc.field("key") == row["key"]).to_pylist():
        only = pc.field("component") == one["component"]
        members = sum(len(part) for part in iter_matches(path, DECISIONS, only, ["key"]))
        kept = one["representative"] or "none of it: it was dropped whole"
        yield f"{one['status']}: {one['reason']}"
        yield f"component {one['component']} of {members:,} images, kept: {kept}"
        if one["match"]:
            what = _DECIDED_BY.get(one["reason"], "query")
            yield f"decided by the {what} {one['match']} at cosine {one['similarity']:.3f}{_between(one, dedup)}"


def _between(decision: dict[str, Any], dedup: Path) -> str:
    """Which views of the two images the cosine is of, unless both were compared whole."""
    views = decision["view"], decision["match_view"]
    if max(views) <= 0:
        return ""
    names = [str(view) for view in views]
    if (dedup / "params.json").exists():
        given = json.loads((dedup / "params.json").read_text())
        described = Views(tuple((keep, count) for keep, count in given["windows"]), given["views"]["flip"])
        names = [described.name(view) for view in views]
    return f", between its view ({names[0]}) and that image's ({names[1]})"
