"""Addresses of images that lie in folders and tar shards, with what the texts and tables beside them say."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq

from components.curate.links.addresses import (
    ADDRESSES,
    Gathering,
    Met,
    NothingFound,
    addresses,
    rows_of,
    warn_of_damage,
)
from components.executor import map_shards
from components.progress import track
from components.storage import ObjectUnreadable, Store, atomic_file, is_remote, of_one_file
from components.tables.database import database
from components.web.sources.kinds import LEFT
from components.web.sources.link_table import RowWriter, first_position
from components.web.sources.listing import shown
from components.web.sources.scan import local_file
from components.web.sources.sidecars import MAX_TEXT, Beside, Said, beside, is_table, read_table, said_of
from components.web.sources.sources_json import Sources
from components.web.sources.tars import samples

_READERS = 32  # texts asked for at a time where they lie on an object store
_BATCH = 8192  # files whose texts are in memory at a time
_DISTINCT = "SELECT count(DISTINCT url) AS found FROM read_parquet($tables)"


def of_images(sources: Sources, how: Gathering) -> Met:
    """Every file of a folder of images; policy applies where a text or table beside it says an address."""
    counts: Counter[str] = Counter()
    paths = [file.path for file in sources.of("images")]
    texts = [file.path for file in sources.of("text")]
    tabled = _tables(how.store, [name for name in texts if is_table(name)], counts)
    speaking = beside(paths, [name for name in texts if not is_table(name)])
    out = how.work / "images.parquet"
    with atomic_file(out) as file, pq.ParquetWriter(file, ADDRESSES) as writer:
        for start in range(0, len(paths), _BATCH):
            named = paths[start : start + _BATCH]
            said = list(_said(how.store, named, speaking, tabled, counts))
            files = [f"file:{quote(path, errors='surrogateescape')}" for path in named]
            where = [f"{sources.root}/{p}" if one.url else sources.root for p, one in zip(named, said, strict=True)]
            columns: dict[str, Any] = {
                "row": range(start, start + len(named)), "kind": ["images"] * len(named),
                "url": [one.url or url for one, url in zip(said, files, strict=True)],
                "of_web": [bool(one.url) for one in said], "alt": [one.alt for one in said],
                "licence": [one.licence for one in said], "source": [shown(one) for one in where],
                "file": [os.fsencode(path) for path in named], "length": [0] * len(named),
            }  # fmt: skip
            writer.write_batch(addresses(columns, len(named)))
    counts["files"] = len(paths)
    if repeated := rows_of([out]) - _distinct([out], how):
        counts["repeated-address"] = repeated
    return Met([out], "images", counts=counts)


def _said(
    store: Store, paths: list[str], speaking: Mapping[str, Beside], tabled: Mapping[str, Said], counts: Counter[str]
) -> Iterator[Said]:
    """What is said of each of ``paths``, in their order."""
    needed = list(dict.fromkeys(text for path in paths if path in speaking for text in speaking[path].texts))
    read = dict(zip(needed, _read_all(store, needed, counts), strict=True))
    for path in paths:
        own = speaking.get(path)
        said = said_of({text: read[text] for text in own.texts}, own.shared) if own else Said()
        yield said.filled_by(tabled.get(path, Said()))


@dataclass(frozen=True)
class TarItem:
    """One tar shard to list."""

    store: Store
    name: str
    out: Path
    number: int  # of the shard in its run


def list_tar(item: TarItem) -> Path:
    """Write the images of one tar shard (ADDRESSES), its counts beside; skipped if these are there."""
    counted = item.out.with_suffix(".json")
    if counted.exists():
        return item.out
    counts: Counter[str] = Counter()
    with RowWriter(item.out, ADDRESSES) as writer:
        try:
            with local_file(item.store, item.name) as path:
                for sample in samples(path, counts):
                    url = sample.url or f"file:{quote(f'{item.name}/{sample.member.name}', errors='surrogateescape')}"
                    writer.add(
                        {"row": first_position(item.number) + writer.rows, "url": url, "page": "", "alt": sample.alt,
                         "licence": sample.licence, "reason": "", "opt_out": False, "said": "",
                         "of_web": bool(sample.url), "kind": "tars", "source": shown(item.name),
                         "file": os.fsencode(item.name), "offset": sample.member.offset,
                         "length": sample.member.length}
                    )  # fmt: skip
        except (ObjectUnreadable, OSError) as fault:
            if isinstance(fault, OSError) and not of_one_file(fault):
                raise
            counts["tar-unreadable"] += 1  # what was read of it before stays
    with atomic_file(counted, "w") as file:
        json.dump(counts, file)
    return item.out


def of_tars(sources: Sources, how: Gathering) -> Met:
    """Every image of tar shards in WebDataset layout; policy applies where its JSON says an address."""
    files = sources.of("tars")
    items = [
        TarItem(how.store, file.path, how.work / f"tar-{number:07d}.parquet", number)
        for number, file in enumerate(files)
    ]
    total, tables, images = Counter[str](), list[Path](), 0
    listed = map_shards(list_tar, items, how.executor)
    for item, path in zip(items, track(listed, "scan", len(items), unit="tar shards"), strict=True):
        counts = json.loads(path.with_suffix(".json").read_text())
        total.update(counts)
        tables.append(path)
        images += rows_of([path])
        warn_of_damage(how.store, item.name, counts, f"the {images} images so far")
    for why, count in total.items():
        if (kind := next((kind for kind in LEFT if why == f"left-{kind}"), None)) and kind != "other":
            print(f"left out in tar shards: {kind} {count:,}: {LEFT[kind]}", file=sys.stderr, flush=True)
    if not images:
        raise NothingFound(f"{shown(sources.root)}: no image in {len(items)} tar shards {dict(total) or ''}", total)
    if repeated := images - _distinct(tables, how):
        total["tar-repeated-address"] = repeated
    return Met(tables, "tars", counts=total)


def _distinct(tables: list[Path], how: Gathering) -> int:
    """How many different addresses the tables name."""
    with database(how.memory, how.work) as connection:
        ((count,),) = connection.execute(_DISTINCT, {"tables": [str(path) for path in tables]}).fetchall()
    return int(count)


def _tables(store: Store, names: Iterable[str], counts: Counter[str]) -> dict[str, Said]:
    """What metadata tables say of files, by path; a table in the file's own folder goes before one further up."""
    found: dict[str, Said] = {}
    for name in sorted(names, key=lambda name: name.count("/")):
        try:
            found.update(read_table(name, store.read(name)))
        except (ObjectUnreadable, ValueError):  # what came before the damage is used
            counts["table-unreadable"] += 1
            print(f"warning: {store.root}/{shown(name)}: not a readable table; images keep what else is said of them",
                  file=sys.stderr, flush=True)  # fmt: skip
    return found


def _read_all(store: Store, names: list[str], counts: Counter[str]) -> Iterator[bytes]:
    """The texts' bytes, in order; those that cannot be read are empty, and counted."""

    def one(name: str) -> bytes | None:
        try:
            return store.read(name, 0, MAX_TEXT)
        except ObjectUnreadable:
            return None

    with ThreadPoolExecutor(_READERS if is_remote(store.root) else 1) as pool:
        for data in pool.map(one, names):
            counts["text-unreadable"] += data is None
            yield data or b""
