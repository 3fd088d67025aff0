"""Index rows of images that lie in folders and tar shards, with what the texts and tables beside them say."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from components.curate.examine import Place
from components.curate.gather import Gathered, NothingFound, blank_row, warn_of_damage
from components.progress import track
from components.storage import ObjectUnreadable, Store, is_remote, of_one_file
from components.web.kinds import LEFT
from components.web.listing import shown
from components.web.policy import Policy
from components.web.scan import local_file
from components.web.sidecars import MAX_TEXT, Said, beside, is_table, read_table, said_of
from components.web.sources import Sources
from components.web.tars import samples

_READERS = 32  # texts asked for at a time where they lie on an object store


def gather_images(sources: Sources, store: Store, policy: Policy) -> Gathered:
    """A row for every file of a folder of images; policy applies where a text or table beside it says an address."""
    found = Gathered()
    paths = [file.path for file in sources.of("images")]
    texts = [file.path for file in sources.of("text")]
    tabled = _tables(store, [name for name in texts if is_table(name)], found.counts)
    speaking = beside(paths, [name for name in texts if not is_table(name)])
    needed = list(dict.fromkeys(text for said in speaking.values() for text in said.texts))
    read = dict(zip(needed, _read_all(store, needed, found.counts), strict=True))
    seen: set[str] = set()
    for path in paths:
        own = speaking.get(path)
        said = said_of({text: read[text] for text in own.texts}, own.shared) if own else Said()
        said = said.filled_by(tabled.get(path, Said()))
        url = said.url or f"file:{quote(path, errors='surrogateescape')}"
        if url in seen:
            found.counts["repeated-address"] += 1
            continue
        seen.add(url)
        where = f"{sources.root}/{path}" if said.url else sources.root
        row = blank_row(url, "", said.alt, shown(where), licence=said.licence)
        if said.url:
            row["reason"], row["decisions"] = policy.judge(url, "", False, {})
        if not row["reason"]:
            found.places[row["key"]] = Place(row["key"], path, -1, 0)
        found.rows.append(row)
    found.counts["files"] = len(paths)
    return found


def gather_tars(sources: Sources, store: Store, policy: Policy) -> Gathered:
    """A row for every image of tar shards in WebDataset layout; policy applies where its JSON says an address."""
    found = Gathered()
    seen: set[str] = set()
    files = sources.of("tars")
    for file in track(files, "scan", len(files), unit="tar shards"):
        counts: Counter[str] = Counter()
        try:
            with local_file(store, file.path) as path:
                for sample in samples(path, counts):
                    name = f"{file.path}/{sample.member.name}"
                    url = sample.url or f"file:{quote(name, errors='surrogateescape')}"
                    if url in seen:
                        counts["tar-repeated-address"] += 1
                        continue
                    seen.add(url)
                    row = blank_row(url, "", sample.alt, shown(file.path), sample.member.offset, sample.licence)
                    if sample.url:
                        row["reason"], row["decisions"] = policy.judge(url, "", False, {})
                    if not row["reason"]:
                        at, length = sample.member.offset, sample.member.length
                        found.places[row["key"]] = Place(row["key"], file.path, at, length, "tars")
                    found.rows.append(row)
        except (ObjectUnreadable, OSError) as fault:
            if isinstance(fault, OSError) and not of_one_file(fault):
                raise
            counts["tar-unreadable"] += 1  # what was read of it before stays
        found.counts.update(counts)
        warn_of_damage(store, file.path, counts, f"the {len(found.rows)} images so far")
    for why, count in found.counts.items():
        if (kind := next((kind for kind in LEFT if why == f"left-{kind}"), None)) and kind != "other":
            print(f"left out in tar shards: {kind} {count:,}: {LEFT[kind]}", file=sys.stderr, flush=True)
    if not found.rows:
        said = f"{shown(sources.root)}: no image in {len(files)} tar shards {dict(found.counts) or ''}"
        raise NothingFound(said, found.counts)
    return found


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
