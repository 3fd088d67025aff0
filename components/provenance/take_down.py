"""Take images down: out of index, links, shards, decisions and manifest; onto the block list; and say who held them.

    python -m components.provenance forget --domain example.org
    python -m components.provenance forget --url http://example.org/a.jpg --dry-run

What is here is changed in an order that a kill cannot harm: first the block list (no later run takes the image in
again), then the dedup output with its manifest, then index and shards; each appears whole or not at all, and the same
command run again finishes. Older versions (DVC's cache and remotes, published manifests, models) are not touched but
listed: removing those is a decision, with the commands for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import VitrailError
from components.images.shards import Shards, data_digest, erase
from components.lock import hold
from components.provenance import holders
from components.provenance.receipt import Receipt
from components.provenance.trace import AUDIT_NAME, LINKS_NAME
from components.storage import StorageParams, atomic_dir, open_store, publish
from components.tables.database import MemoryParams, database, stream
from components.tables.layout import CURATE, DEDUP, declared_file
from components.tables.parts import PartWriter, iter_batches, iter_matches, part_rows, parts, read_table, sources
from components.tables.parts import digest as table_digest
from components.tables.schemas import AUDIT, DECISIONS, INDEX, KEYS, LINKS, MANIFEST
from components.tracking import TrackingParams, Trained, trained_on
from components.web.formats.urls import resolve
from components.web.rules.block_list import below, remember
from components.web.rules.keys import key_of

Copies = Literal["none", "curate", "dedup"]
BLOCK = 65_536  # rows copied at a time


@dataclass(frozen=True)
class TakeDownRequest:
    """What is to be taken down: one of the three."""

    domain: str = ""
    url: str = ""
    key: str = ""


@dataclass(frozen=True)
class Outputs:
    """Where the stages' outputs are, and where else to look."""

    curated: Path
    dedup: Path
    look: tuple[Path, ...]  # folders with manifests and exported models
    block: Path  # the block list
    root: Path = Path()  # the checkout: dvc.lock and DVC's cache


def forget(
    wanted: TakeDownRequest,
    outputs: Outputs,
    copies: Copies,
    storage: StorageParams,
    tracking: TrackingParams,
    dry: bool,
) -> Receipt:
    """Take down what ``wanted`` names, with its ``copies`` (none; curation's duplicates; or dedup's component, too).

    Raises:
        VitrailError: nothing that can be named so, no index, or a stage at work on an output that is to be changed.
    """
    with contextlib.ExitStack() as held:
        for folder in () if dry else (outputs.curated, outputs.dedup):
            held.enter_context(hold(folder))
        return _forget(wanted, outputs, copies, storage, tracking, dry)


def _forget(
    wanted: TakeDownRequest,
    outputs: Outputs,
    copies: Copies,
    storage: StorageParams,
    tracking: TrackingParams,
    dry: bool,
) -> Receipt:
    _declared(outputs)
    with tempfile.TemporaryDirectory(prefix="vitrail-forget-") as aside, database(MemoryParams(), Path(aside)) as open_:
        index = sources(outputs.curated / "index", INDEX)
        named, entries = _named(wanted, open_, index, outputs.curated)
        keys = _with_copies(named, open_, index, copies)
        rows = _rows_of(keys, outputs.curated)
    component = _component(keys, outputs.dedup)
    if copies == "dedup" and component - keys:
        keys |= component
        rows = _rows_of(keys, outputs.curated)
    entries += [("key", key) for key in sorted(keys)] if not wanted.domain or keys - named else []
    entries += [("sha256", digest) for digest in sorted(set(rows["sha256"].to_pylist()) - {""})]
    receipt = _receipt(_Reach(keys, named, component - keys), rows, outputs, storage, tracking)
    if dry:
        return receipt
    what = wanted.domain or wanted.url or wanted.key
    note = f"{time.strftime('%Y-%m-%d', time.gmtime())}, {len(keys)} images" + (f": {what}" if wanted.domain else "")
    receipt.blocked = remember(outputs.block, entries, note)
    if keys:
        if (outputs.dedup / "manifest").exists():
            receipt.published = _forget_in_dedup(keys, outputs.dedup, storage, receipt.done)
        _forget_in_curated(keys, rows, outputs.curated, storage, receipt.done)
    return receipt


def _declared(outputs: Outputs) -> None:
    """Refuse outputs with a file that no stage declares, before anything is changed."""
    for folder, files in ((outputs.curated, CURATE), (outputs.dedup, DEDUP)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            declared_file(path.name, files, str(folder))


def _rows_of(keys: set[str], curated: Path) -> pa.Table:
    """The index rows of ``keys``."""
    return read_table(curated / "index", INDEX, pc.field("key").isin(pa.array(sorted(keys), pa.string())))


def _named(
    wanted: TakeDownRequest, open_: Any, index: list[str], curated: Path
) -> tuple[set[str], list[tuple[str, str]]]:
    """Keys of the rows that ``wanted`` names itself, and what to block whether or not there are any."""
    if wanted.key:
        return set(_rows_of({wanted.key}, curated)["key"].to_pylist()), [("key", wanted.key)]
    if wanted.url:
        url = resolve("", wanted.url) or wanted.url
        return set(_rows_of({key_of(url), key_of(wanted.url)}, curated)["key"].to_pylist()), [("key", key_of(url))]
    domain = wanted.domain.strip(". ").lower()
    if not domain or any(character in domain for character in "/@ "):
        raise VitrailError(f"--domain {wanted.domain!r}: a host or domain name such as example.org is wanted")
    links = sources(curated / LINKS_NAME, LINKS) if (curated / LINKS_NAME).exists() else index
    # The text is looked for first, for it is quick; of what holds it, the host decides.
    query = """SELECT DISTINCT url, page FROM (
                 SELECT url, page FROM read_parquet($links) UNION ALL SELECT url, '' FROM read_parquet($index)
               ) WHERE contains(lower(url), $domain) OR contains(lower(page), $domain)"""
    found = set()
    for batch in stream(open_, query, {"links": links, "index": index, "domain": domain}):
        for url, page in zip(batch["url"].to_pylist(), batch["page"].to_pylist(), strict=True):
            if any(below((urlsplit(one).hostname or "").rstrip(".").lower(), domain) for one in (url, page)):
                found.add(key_of(url))
    return set(_rows_of(found, curated)["key"].to_pylist()), [("domain", domain)]


def _with_copies(named: set[str], open_: Any, index: list[str], copies: Copies) -> set[str]:
    """``named``, and unless ``copies`` is none, every row with the same bytes, its original and what repeats either."""
    found = set(named)
    query = """WITH mine AS (
                 SELECT sha256, CASE WHEN duplicate_of = '' THEN key ELSE duplicate_of END AS original
                 FROM read_parquet($index) WHERE key IN (SELECT unnest($keys))
               )
               SELECT key FROM read_parquet($index)
               WHERE CASE WHEN duplicate_of = '' THEN key ELSE duplicate_of END IN (SELECT original FROM mine)
                  OR sha256 IN (SELECT sha256 FROM mine WHERE sha256 <> '')"""
    fresh = set(named) if copies != "none" else set()
    while fresh:
        reader = stream(open_, query, {"index": index, "keys": sorted(fresh)})
        fresh = {key for batch in reader for key in batch["key"].to_pylist()} - found
        found |= fresh
    return found


def _component(keys: set[str], dedup: Path) -> set[str]:
    """Keys of all images in the components of the copy graph that ``keys`` are in."""
    path = dedup / "decisions"
    if not keys or not path.exists():
        return set()
    mine = read_table(path, DECISIONS, pc.field("key").isin(pa.array(sorted(keys), pa.string())), ["component"])
    components = pc.field("component").isin(pc.unique(mine["component"]))
    found = set()
    for part in iter_matches(path, DECISIONS, components, ["key"]):
        found |= set(part["key"].to_pylist())
    return found


@dataclass(frozen=True)
class _Reach:
    """The keys of the images that are taken down."""

    keys: set[str]  # all of them
    named: set[str]  # those that were asked for
    others: set[str]  # copies by dedup's decisions, which stay


def _receipt(
    reach: _Reach, rows: pa.Table, outputs: Outputs, storage: StorageParams, tracking: TrackingParams
) -> Receipt:
    keys = reach.keys
    held = holders.manifests(outputs.look, storage, keys)
    outs = [str(outputs.curated), str(outputs.dedup)]
    known = holders.versions(outputs.root, outs, keys) if keys else []
    digests = set(holders.training_sets(known))
    manifest, shards = outputs.dedup / "manifest", outputs.curated / "shards.json"
    if any(holding.where == str(manifest) for holding in held) and shards.exists():
        digests.add(data_digest(parts(manifest, MANIFEST), Shards.load(outputs.curated).shards))
    runs: list[Trained] = trained_on(tracking, sorted(digests)) if digests else []
    kept = rows.filter(pc.equal(rows["status"], "kept"))
    fetched = rows.filter(pc.not_equal(rows["sha256"], ""))
    return Receipt(
        keys=sorted(keys),
        stored=len(kept),
        also_copies=len(keys - reach.named),
        other_copies=sorted(reach.others),
        blocked=0,
        manifests=[f"{holding.where}: {len(holding.rows)} of them" for holding in held],
        versions=[{"out": v.out, "digest": v.digest, "where": v.commits, "held": v.held} for v in known if v.held != 0],
        runs=[asdict(run) for run in runs],
        models=holders.models(outputs.look, digests),
        sources=sorted(set(fetched["source"].to_pylist()) - {""}),
    )


def _forget_in_dedup(keys: set[str], dedup: Path, storage: StorageParams, done: list[str]) -> str | None:
    """Write ``dedup`` without ``keys``: manifest, decisions, and all that is aligned with its rows."""
    wanted = pa.array(sorted(keys), pa.string())
    gone = np.concatenate(
        [
            pc.is_in(batch["key"], wanted).to_numpy(False)
            for batch in iter_batches(dedup / "decisions", DECISIONS, ["key"])
        ]
    )
    before = sum(part_rows(dedup / "manifest", MANIFEST))
    held = sum(len(part) for part in iter_matches(dedup / "manifest", MANIFEST, pc.field("key").isin(wanted), ["key"]))
    if not gone.any() and not held:
        return None
    if held == before:
        raise VitrailError(f"{dedup / 'manifest'}: nothing would be left of it; delete {dedup} instead")
    number = np.cumsum(~gone) - 1  # new row of each old one
    with atomic_dir(dedup) as folder:
        for path in dedup.iterdir():
            file, new = declared_file(path.name, DEDUP, str(dedup)), folder / path.name
            if file.role == "rows" and path.suffix == ".npy":
                _save_rows(path, new, ~gone)
            elif file.role == "rows":
                _save_rows_of_table(path, new, ~gone)
            elif file.role == "pairs":
                _forget_edges(path, new, gone, number)
            elif file.role == "carried":
                _take_over(path, new)
        _without(dedup / "manifest", folder / "manifest", MANIFEST, "key", wanted)
        _decisions_without(dedup / "decisions", folder / "decisions", gone, keys)
        digest = table_digest(folder / "manifest", MANIFEST)[:16]
    done.append(f"{dedup / 'manifest'}: {before - held:,} of {before:,} images left")
    return publish(storage, dedup, ("manifest", "decisions"), "dedup", digest)


def _without(old: Path, new: Path, schema: pa.Schema, column: str, gone: pa.Array) -> int:
    """Write the rows of a table whose ``column`` is none of ``gone``, part by part; how many stay."""
    with PartWriter(new, schema) as writer:
        for part in iter_matches(old, schema, ~pc.field(column).isin(gone)):
            writer.write(part)
    return writer.count


def _save_rows_of_table(old: Path, new: Path, stays: Any) -> None:
    """The rows of the table of keys that stay, a batch in memory at a time."""
    at = 0
    with PartWriter(new, KEYS) as writer:
        for batch in iter_batches(old, KEYS):
            writer.write(batch.filter(pa.array(stays[at : at + len(batch)])))
            at += len(batch)


def _save_rows(old: Path, new: Path, stays: Any) -> None:
    """The rows of an array file that stay, a block in memory at a time."""
    rows = np.load(old, mmap_mode="r", allow_pickle=False)
    numbers = np.flatnonzero(stays)
    kept = np.lib.format.open_memmap(new, "w+", rows.dtype, (len(numbers), *rows.shape[1:]))
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        kept[start : start + len(block)] = rows[block]
    kept.flush()


def _decisions_without(old: Path, new: Path, gone: Any, keys: set[str]) -> None:
    """Decisions without the rows ``gone`` [N], no other row naming one of ``keys``; components numbered anew.

    A component is named by the first of its rows that stays.
    """
    column = [batch["component"].to_numpy() for batch in iter_batches(old, DECISIONS, ["component"])]
    component = np.concatenate(column)[~gone]
    _, first, which = np.unique(component, return_index=True, return_inverse=True)
    anew, wanted, at, kept = first[which.reshape(-1)], pa.array(sorted(keys), pa.string()), 0, 0
    with PartWriter(new, DECISIONS) as writer:
        for batch in iter_batches(old, DECISIONS):
            rows = pa.Table.from_batches([batch]).filter(pa.array(~gone[at : at + len(batch)]))
            at, kept, start = at + len(batch), kept + len(rows), kept
            numbers = {"component": pa.array(anew[start:kept], pa.int64())}
            lost = pc.is_in(rows["match"], wanted)
            blanks = {"match": "", "similarity": float("nan"), "view": -1, "match_view": -1}
            columns = {
                name: pc.if_else(lost, pa.scalar(value, rows[name].type), rows[name]) for name, value in blanks.items()
            }
            none = pc.is_in(rows["representative"], wanted)
            columns["representative"] = pc.if_else(none, "", rows["representative"])
            writer.write(pa.table({name: (numbers | columns).get(name, rows[name]) for name in DECISIONS.names}))


def _forget_edges(old: Path, new: Path, gone: Any, number: Any) -> None:
    """Edges without the rows ``gone`` [N], by the new ``number`` [N] of each row."""
    new.mkdir()
    for path in sorted(old.iterdir()):
        table = pq.read_table(path)
        a, b = table["a"].to_numpy(), table["b"].to_numpy()
        stays = ~(gone[a] | gone[b])
        written = table.filter(pa.array(stays))
        for name, rows in (("a", a), ("b", b)):
            numbers = pa.array(number[rows[stays]], pa.int64())
            written = written.set_column(written.schema.get_field_index(name), name, numbers)
        written = written.cast(table.schema)
        pq.write_table(written.replace_schema_metadata(table.schema.metadata), new / path.name, compression="zstd")


def _forget_in_curated(keys: set[str], rows: pa.Table, curated: Path, storage: StorageParams, done: list[str]) -> None:
    """Write ``curated`` without ``keys``, their bytes blanked in the shards; what remains stays in its place.

    ``rows`` are the index rows of ``keys``.
    """
    wanted = pa.array(sorted(keys), pa.string())
    before = sum(part_rows(curated / "index", INDEX))
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows.filter(pc.equal(rows["status"], "kept")).select(["shard", "offset", "length"]).to_pylist():
        places[row["shard"]].append((row["offset"], row["length"]))
    shards = Shards.load(curated)
    entries, store = dict(shards.shards), shards.store(curated, storage)
    with atomic_dir(curated) as folder:
        inside = open_store(str(folder / "shards")) if not shards.base else store
        for path in curated.iterdir():
            if declared_file(path.name, CURATE, str(curated)).role == "carried":
                _take_over(path, folder / path.name)
        for name in sorted(entries):
            if name not in places:
                if not shards.base:
                    _take_over(curated / "shards" / name, folder / "shards" / name)
                continue
            with tempfile.TemporaryDirectory(prefix="vitrail-forget-") as aside:
                path = Path(aside, "shard.tar")
                store.get_file(name, path)
                erase(path, places[name])
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                inside.put_file(name, path)
            entries[name] = {**entries[name], "sha256": digest}
        Shards(shards.base, entries).save(folder)
        with PartWriter(folder / "index", INDEX) as writer:
            for part in iter_matches(curated / "index", INDEX, ~pc.field("key").isin(wanted)):
                originals = pc.if_else(pc.is_in(part["duplicate_of"], wanted), "", part["duplicate_of"])
                column = part.column_names.index("duplicate_of")
                writer.write(part.set_column(column, "duplicate_of", originals))
        urls = pa.array(rows["url"].to_pylist(), pa.string())
        if (curated / LINKS_NAME).exists():
            _without(curated / LINKS_NAME, folder / LINKS_NAME, LINKS, "url", urls)
        if (curated / AUDIT_NAME).exists():
            _without(curated / AUDIT_NAME, folder / AUDIT_NAME, AUDIT, "key", wanted)
    done.append(f"{curated / 'index'}: {writer.count:,} of {before:,} rows left")
    if places:
        count = sum(map(len, places.values()))
        done.append(f"{store.root}: {count:,} images blanked in {len(places):,} shards, all offsets as they were")


def _take_over(old: Path, new: Path) -> None:
    """Make ``old``, a file or a folder that does not change, appear as ``new`` too."""
    if old.is_dir():
        for path in old.iterdir():
            _take_over(path, new / path.name)
        return
    new.parent.mkdir(parents=True, exist_ok=True)
    if old.is_symlink():  # into DVC's cache
        os.symlink(os.path.realpath(old), new)
        return
    try:
        os.link(old, new)
    except OSError:  # a file system without hard links
        shutil.copyfile(old, new)
