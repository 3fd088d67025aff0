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
import json
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import VitrailError
from components.images.shards import erase
from components.images.tables import DECISIONS, INDEX, MANIFEST, Shards, data_digest, read_table, write_table
from components.lock import hold
from components.provenance import holders
from components.provenance.trace import AUDIT_NAME, LINKS_NAME
from components.storage import StorageParams, atomic_dir, atomic_file, open_store, publish
from components.tracking import TrackingParams, Trained, trained_on
from components.web.block_list import below, remember
from components.web.keys import key_of
from components.web.urls import resolve

Copies = Literal["none", "curate", "dedup"]
PICTURES = ("contact-sheet.png", "duplicates.jpg", "held-out.jpg", "review.html")  # may show it; made anew by a run
SHOWN = 20
BLOCK = 65_536  # rows copied at a time


@dataclass(frozen=True)
class Wanted:
    """What is to be taken down: one of the three."""

    domain: str = ""
    url: str = ""
    key: str = ""


@dataclass(frozen=True)
class Outputs:
    """Where the stages' outputs stand, and where else to look."""

    curated: Path
    dedup: Path
    look: tuple[Path, ...]  # folders with manifests and exported models
    block: Path  # the block list
    root: Path = Path()  # the checkout: dvc.lock and DVC's cache


@dataclass
class Receipt:
    """What was found and done."""

    keys: list[str]  # the images taken down
    stored: int  # of them, those whose bytes were in shards
    also_copies: int  # of them, those that came in as copies of what was named
    other_copies: list[str]  # kept images that dedup calls copies of them, and that stay
    blocked: int  # new entries on the block list
    manifests: list[str]
    versions: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    models: list[tuple[str, str]]
    sources: list[str]  # crawled files that still hold the bytes
    published: str | None = None  # where the new manifest was published
    done: list[str] = field(default_factory=list)


def forget(
    wanted: Wanted, outputs: Outputs, copies: Copies, storage: StorageParams, tracking: TrackingParams, dry: bool
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
    wanted: Wanted, outputs: Outputs, copies: Copies, storage: StorageParams, tracking: TrackingParams, dry: bool
) -> Receipt:
    index = read_table(outputs.curated / "index.parquet", INDEX)
    named, entries = _named(wanted, index, outputs.curated)
    keys = _with_copies(named, index, copies)
    component = _component(keys, outputs.dedup)
    if copies == "dedup":
        keys |= component
    rows = index.filter(pc.is_in(index["key"], pa.array(sorted(keys), pa.string())))
    entries += [("key", key) for key in sorted(keys)] if not wanted.domain or keys - named else []
    entries += [("sha256", digest) for digest in sorted(set(rows["sha256"].to_pylist()) - {""})]
    receipt = _receipt(keys, named, component - keys, rows, outputs, storage, tracking)
    if dry:
        return receipt
    what = wanted.domain or wanted.url or wanted.key
    note = f"{time.strftime('%Y-%m-%d', time.gmtime())}, {len(keys)} images" + (f": {what}" if wanted.domain else "")
    receipt.blocked = remember(outputs.block, entries, note)
    if keys:
        if (outputs.dedup / "manifest.parquet").exists():
            receipt.published = _forget_in_dedup(keys, outputs.dedup, storage, receipt.done)
        _forget_in_curated(keys, index, outputs.curated, storage, receipt.done)
    return receipt


def _named(wanted: Wanted, index: pa.Table, curated: Path) -> tuple[set[str], list[tuple[str, str]]]:
    """Keys of the rows that ``wanted`` names itself, and what to block whether or not there are any."""
    if wanted.key:
        known = set(index["key"].to_pylist()) & {wanted.key}
        return known, [("key", wanted.key)]
    if wanted.url:
        url = resolve("", wanted.url) or wanted.url
        return set(index["key"].to_pylist()) & {key_of(url), key_of(wanted.url)}, [("key", key_of(url))]
    domain = wanted.domain.strip(". ").lower()
    if not domain or any(character in domain for character in "/@ "):
        raise VitrailError(f"--domain {wanted.domain!r}: a host or domain name such as example.org is wanted")

    def within(url: str) -> bool:
        return below((urlsplit(url).hostname or "").rstrip(".").lower(), domain)

    urls, keys = index["url"].to_pylist(), index["key"].to_pylist()
    pages: dict[str, bool] = {}
    found = {key for key, url in zip(keys, urls, strict=True) if within(url)}
    for url, page in _named_by(index, curated):
        if page not in pages:
            pages[page] = within(page)
        if pages[page]:
            found.add(key_of(url))
    return found & set(keys), [("domain", domain)]


def _named_by(index: pa.Table, curated: Path) -> Iterable[tuple[str, str]]:
    """(image, page) of every link."""
    path = curated / LINKS_NAME
    if not path.exists():
        yield from zip(index["url"].to_pylist(), index["page"].to_pylist(), strict=True)
        return
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(65536, columns=["url", "page"]):
            yield from zip(batch["url"].to_pylist(), batch["page"].to_pylist(), strict=True)


def _with_copies(named: set[str], index: pa.Table, copies: Copies) -> set[str]:
    """``named``, and unless ``copies`` is none, every row with the same bytes, its original and what repeats either."""
    if copies == "none" or not named:
        return set(named)
    groups: dict[str, set[str]] = defaultdict(set)
    group_of: dict[str, list[str]] = {}
    columns = (index[name].to_pylist() for name in ("key", "duplicate_of", "sha256"))
    for key, original, digest in zip(*columns, strict=True):
        group_of[key] = [f"row {original or key}", *([f"bytes {digest}"] if digest else [])]
        for group in group_of[key]:
            groups[group].add(key)
    found, waiting = set(named), list(named)
    while waiting:
        for group in group_of.get(waiting.pop(), ()):
            fresh = groups[group] - found
            found |= fresh
            waiting += fresh
    return found


def _component(keys: set[str], dedup: Path) -> set[str]:
    """Keys of all images in the components of the copy graph that ``keys`` are in."""
    path = dedup / "decisions.parquet"
    if not keys or not path.exists():
        return set()
    table = read_table(path, DECISIONS)
    mine = pc.is_in(table["key"], pa.array(sorted(keys), pa.string()))
    components = pc.unique(table.filter(mine)["component"])
    return set(table.filter(pc.is_in(table["component"], components))["key"].to_pylist())


def _receipt(
    keys: set[str],
    named: set[str],
    others: set[str],
    rows: pa.Table,
    outputs: Outputs,
    storage: StorageParams,
    tracking: TrackingParams,
) -> Receipt:
    held = holders.manifests(outputs.look, storage, keys)
    outs = [str(outputs.curated), str(outputs.dedup)]
    known = holders.versions(outputs.root, outs, keys) if keys else []
    digests = set(holders.training_sets(known))
    manifest, shards = outputs.dedup / "manifest.parquet", outputs.curated / "shards.json"
    if any(holding.where == str(manifest) for holding in held) and shards.exists():
        digests.add(data_digest(manifest.read_bytes(), Shards.load(outputs.curated).shards))
    runs: list[Trained] = trained_on(tracking, sorted(digests)) if digests else []
    kept = rows.filter(pc.equal(rows["status"], "kept"))
    fetched = rows.filter(pc.not_equal(rows["sha256"], ""))
    return Receipt(
        keys=sorted(keys),
        stored=len(kept),
        also_copies=len(keys - named),
        other_copies=sorted(others),
        blocked=0,
        manifests=[f"{holding.where}: {len(holding.rows)} of them" for holding in held],
        versions=[{"out": v.out, "digest": v.digest, "where": v.commits, "held": v.held} for v in known if v.held != 0],
        runs=[asdict(run) for run in runs],
        models=holders.models(outputs.look, digests),
        sources=sorted(set(fetched["source"].to_pylist()) - {""}),
    )


def _forget_in_dedup(keys: set[str], dedup: Path, storage: StorageParams, done: list[str]) -> str | None:
    """Write ``dedup`` without ``keys``: manifest, decisions, and all that is aligned with its rows."""
    decisions = read_table(dedup / "decisions.parquet", DECISIONS)
    manifest = read_table(dedup / "manifest.parquet", MANIFEST)
    gone = pc.is_in(decisions["key"], pa.array(sorted(keys), pa.string())).to_numpy()
    selected = pc.is_in(manifest["key"], pa.array(sorted(keys), pa.string()))
    left = manifest.filter(pc.invert(selected))
    if not gone.any() and len(left) == len(manifest):
        return None
    if not len(left):
        raise VitrailError(f"{dedup / 'manifest.parquet'}: nothing would be left of it; delete {dedup} instead")
    number = np.cumsum(~gone) - 1  # new row of each old one
    with atomic_dir(dedup) as folder:
        for path in dedup.iterdir():
            # The index numbers rows that move: without it, search compares every descriptor until dedup runs again.
            if path.name in (*PICTURES, "manifest.parquet", "decisions.parquet", "index"):
                continue
            if path.name in ("descriptors.npy", "to-held-out.npy"):
                _save_rows(path, folder / path.name, ~gone)
            elif path.name == "keys.parquet":
                pq.write_table(pq.read_table(path).filter(pa.array(~gone)), folder / path.name)
            elif path.name == "edges":
                _forget_edges(path, folder / path.name, gone, number)
            else:
                _take_over(path, folder / path.name)
        write_table(folder / "manifest.parquet", left, MANIFEST)
        write_table(folder / "decisions.parquet", _decisions_without(decisions, gone, keys), DECISIONS)
        digest = hashlib.sha256((folder / "manifest.parquet").read_bytes()).hexdigest()[:16]
    done.append(f"{dedup / 'manifest.parquet'}: {len(left):,} of {len(manifest):,} images left")
    return publish(storage, dedup, ("manifest.parquet", "decisions.parquet"), "dedup", digest)


def _save_rows(old: Path, new: Path, stays: Any) -> None:
    """The rows of an array file that stay, a block in memory at a time."""
    rows = np.load(old, mmap_mode="r", allow_pickle=False)
    numbers = np.flatnonzero(stays)
    kept = np.lib.format.open_memmap(new, "w+", rows.dtype, (len(numbers), *rows.shape[1:]))
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        kept[start : start + len(block)] = rows[block]
    kept.flush()


def _decisions_without(table: pa.Table, gone: Any, keys: set[str]) -> pa.Table:
    """``table`` without the rows ``gone`` [N], and no other row naming one of ``keys``; components numbered anew."""
    rows = table.filter(pa.array(~gone)).to_pylist()
    first: dict[int, int] = {}
    for number, row in enumerate(rows):
        row["component"] = first.setdefault(row["component"], number)
        if row["representative"] in keys:
            row["representative"] = ""
        if row["match"] in keys:
            row["match"], row["similarity"], row["view"], row["match_view"] = "", float("nan"), -1, -1
    return pa.Table.from_pylist(rows, schema=DECISIONS)


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


def _forget_in_curated(keys: set[str], index: pa.Table, curated: Path, storage: StorageParams, done: list[str]) -> None:
    """Write ``curated`` without ``keys``, their bytes blanked in the shards; what remains stays where it stands."""
    wanted = pa.array(sorted(keys), pa.string())
    rows = index.filter(pc.is_in(index["key"], wanted))
    left = index.filter(pc.invert(pc.is_in(index["key"], wanted)))
    orphans = pc.is_in(left["duplicate_of"], wanted)
    originals = pc.if_else(orphans, "", left["duplicate_of"])
    left = left.set_column(left.column_names.index("duplicate_of"), "duplicate_of", originals)
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows.filter(pc.equal(rows["status"], "kept")).select(["shard", "offset", "length"]).to_pylist():
        places[row["shard"]].append((row["offset"], row["length"]))
    shards = Shards.load(curated)
    entries, store = dict(shards.shards), shards.store(curated, storage)
    with atomic_dir(curated) as folder:
        inside = open_store(str(folder / "shards")) if not shards.base else store
        for path in curated.iterdir():
            if path.name not in (*PICTURES, "index.parquet", LINKS_NAME, AUDIT_NAME, "shards.json", "shards"):
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
        write_table(folder / "index.parquet", left, INDEX)
        urls = pa.array(rows["url"].to_pylist(), pa.string())
        _filter(curated / LINKS_NAME, folder / LINKS_NAME, ~pc.field("url").isin(urls))
        _filter(curated / AUDIT_NAME, folder / AUDIT_NAME, ~pc.field("key").isin(wanted))
    done.append(f"{curated / 'index.parquet'}: {len(left):,} of {len(index):,} rows left")
    if places:
        count = sum(map(len, places.values()))
        done.append(f"{store.root}: {count:,} images blanked in {len(places):,} shards, all offsets as they were")


def _filter(old: Path, new: Path, stays: pc.Expression) -> None:
    """The rows of the Parquet file ``old`` that stay, a batch in memory at a time; nothing where there is none."""
    if not old.exists():
        return
    import pyarrow.dataset as ds

    source = ds.dataset(old)
    with atomic_file(new) as file, pq.ParquetWriter(file, source.schema, compression="zstd") as writer:
        for batch in source.to_batches(filter=stays, batch_size=16384):
            if len(batch):
                writer.write_batch(batch)


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


def told(receipt: Receipt, outputs: Outputs, dry: bool) -> str:
    """``receipt`` to read, with what is left to do."""
    count = len(receipt.keys)
    lines = [
        f"{count:,} images, {receipt.stored:,} of them in shards"
        + (f"; {receipt.also_copies:,} of them as copies of what was named" if receipt.also_copies else "")
    ]
    lines += _listed("images", receipt.keys)
    if receipt.other_copies:
        lines += _listed("dedup calls these their copies; --copies dedup takes them too", receipt.other_copies)
    lines += _listed("manifests that held them", receipt.manifests)
    lines += _listed("versions of the data that held them, or may", [_version(one) for one in receipt.versions])
    runs = [f"run {r['name']} ({r['run_id']}, {r['status']})" for r in receipt.runs]
    lines += _listed("MLflow runs that trained on them", runs)
    lines += _listed("MLflow models of those runs", [model for run in receipt.runs for model in run["models"]])
    lines += _listed("exported models", [f"{folder}: {why}" for folder, why in receipt.models])
    lines += _listed("crawled files that still hold their bytes", receipt.sources)
    if dry:
        return "\n".join([*lines, "nothing was changed (--dry-run)"])
    lines.append(f"done: {receipt.blocked:,} entries added to {outputs.block}")
    lines += [f"  {line}" for line in receipt.done]
    if receipt.published:
        lines.append(f"  published: {receipt.published}")
    if count:
        lines.append(
            f"to do: `dvc commit --force` accepts these outputs as they are; `dvc gc --workspace` (with --cloud for"
            f" remotes) then removes older versions; train again what is listed; pictures in MLflow's curate and dedup"
            f" runs may show them; `dvc repro` instead makes {outputs.curated} anew from the crawl, without them"
        )
    return "\n".join(lines)


def _version(one: dict[str, Any]) -> str:
    held = "not in this cache: dvc fetch it to know" if one["held"] is None else f"{one['held']} of them"
    where = ", ".join(one["where"]) or "named by no lock (run cache)"
    return f"{one['out']} {one['digest']} ({where}): {held}"


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    more = [f"  and {len(lines) - SHOWN:,} more (--report has all)"] if len(lines) > SHOWN else []
    return [f"{title}:", *(f"  {line}" for line in lines[:SHOWN]), *more] if lines else [f"{title}: none"]


def save(receipt: Receipt, path: Path) -> None:
    """Write ``receipt`` as JSON."""
    with atomic_file(path, "w") as file:
        json.dump(asdict(receipt), file, indent=1)
