"""Who holds an image: manifests on disk and on the store, versions in DVC's cache, exported models and MLflow's runs.

DVC's files are read as they lie (its locks are YAML, a cached folder is a JSON list of its files' digests): stages know
no orchestrator, and looking must not take DVC's locks.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.git import git
from components.images.shards import data_digest
from components.storage import StorageParams, inside_outputs, open_store

SHARDS, CARD = "shards.json", "model.json"
# A manifest or an index is a folder of parts; versions of before were one file.
MANIFEST_PARTS = re.compile(r"(.*/)?manifest(\.parquet|/part-\d+-of-\d+\.parquet)")
INDEX_PARTS = re.compile(r"(.*/)?index(\.parquet|/part-\d+-of-\d+\.parquet)")


@dataclass(frozen=True)
class Holding:
    """A table that names some of the wanted images."""

    where: str
    rows: list[dict[str, Any]]  # of a manifest: key, weight, reason


@dataclass
class OutputVersion:
    """One version of a stage's output that DVC has recorded or cached."""

    out: str  # such as data/dedup; "?" where no lock names it
    digest: str
    commits: list[str] = field(default_factory=list)  # where dvc.lock names it: short hashes, or "working tree"
    files: dict[str, Path] | None = None  # the files in the cache; None: this version is not in this cache
    held: int | None = None  # wanted images in it; None: cannot be known here


def manifests(roots: Sequence[Path], storage: StorageParams, keys: Iterable[str]) -> list[Holding]:
    """The manifests below ``roots``, and those published on the store, that select any of ``keys``."""
    wanted = pa.array(sorted(keys), pa.string())
    found: dict[str, Holding] = {}

    def look_in(where: str, path: Any) -> None:
        rows = _rows(path, wanted)
        if rows:
            found.setdefault(where, Holding(where, [])).rows.extend(rows)

    files = sorted({path for root in roots for path in root.rglob("*.parquet") if ".work" not in str(path)})
    for path in files:
        if MANIFEST_PARTS.fullmatch(path.as_posix()):
            look_in(_table_of(path.as_posix()), path)
    if not inside_outputs(storage):
        store = open_store(storage, "dedup")
        for name in store.list():
            if MANIFEST_PARTS.fullmatch(name):
                look_in(f"{store.root}/{_table_of(name)}", pa.BufferReader(store.read(name)))
    return list(found.values())


def _table_of(name: str) -> str:
    """The table that the file ``name`` is a part of, or is."""
    return name.rpartition("/")[0] if "-of-" in name else name


def versions(root: Path, outs: Sequence[str], keys: Iterable[str]) -> list[OutputVersion]:
    """Every version of the outputs ``outs`` (paths in dvc.lock) of the checkout ``root``; ``held`` counts ``keys``."""
    known: dict[str, OutputVersion] = {}
    for commit, text in _locks(root):
        for out, digest in _outs(text):
            if out in outs:
                version = known.setdefault(digest, OutputVersion(out, digest))
                if commit not in version.commits:
                    version.commits.append(commit)
    cache = _cache(root)
    for listing in sorted(cache.glob("files/md5/*/*.dir")) if cache.is_dir() else ():
        files = _files(cache, listing)
        digest = listing.parent.name + listing.name
        if digest in known:
            known[digest].files = files
        elif _parts(files, INDEX_PARTS) or _parts(files, MANIFEST_PARTS):
            known[digest] = OutputVersion("?", digest, files=files)
    wanted = pa.array(sorted(keys), pa.string())
    for version in known.values():
        files = version.files or {}
        table = _parts(files, MANIFEST_PARTS) or _parts(files, INDEX_PARTS)
        if table and all(path.exists() for path in table):
            version.held = sum(len(_rows(path, wanted)) for path in table)
    return list(known.values())


def training_sets(known: Sequence[OutputVersion]) -> Iterator[str]:
    """Digests of the training sets that the manifests with a wanted image make, with any version of the shards."""
    shards = {}
    for version in known:
        path = (version.files or {}).get(SHARDS)
        if path is not None and path.exists():
            shards[version.digest] = json.loads(path.read_text())["shards"]
    for version in known:
        manifest = _parts(version.files or {}, MANIFEST_PARTS)
        if version.held and manifest and all(path.exists() for path in manifest):
            for entries in shards.values():
                yield data_digest(manifest, entries)


def models(roots: Sequence[Path], digests: Iterable[str]) -> list[tuple[str, str]]:
    """(folder, why) of exported models below ``roots`` that were trained on one of ``digests``, went on from a model
    that was, or learned from such a one."""
    cards = {path.parent: json.loads(path.read_text()) for root in roots for path in sorted(root.rglob(CARD))}
    trained, found = set(digests), dict[str, str]()
    presets: set[str] = set()
    for folder, card in cards.items():
        if card.get("data_digest") in trained:
            found[str(folder)] = "trained on it"
        elif (init := card.get("init")) and trained & set(init["data_digests"]):
            found[str(folder)] = f"the model that it started from was ({init['source']})"
        if str(folder) in found:
            presets.add(str(card.get("preset")))
    for folder, card in cards.items():
        if str(folder) not in found and card.get("teacher") in presets:
            found[str(folder)] = f"its teacher {card['teacher']} was"
    return sorted(found.items())


def _parts(files: Mapping[str, Path], names: re.Pattern[str]) -> list[Path]:
    """The files of one table of an output, in order."""
    return [files[name] for name in sorted(files) if names.fullmatch(name)]


def _rows(table: Any, wanted: pa.Array) -> list[dict[str, Any]]:
    """The rows of a manifest or index that are wanted; of an index, those whose bytes are kept."""
    names = set(pq.read_schema(table).names)
    if isinstance(table, pa.BufferReader):
        table.seek(0)
    only = pc.field("key").isin(wanted)
    if "status" in names:
        only &= pc.field("status") == "kept"
    columns = [name for name in ("key", "weight", "reason") if name in names]
    rows: list[dict[str, Any]] = pq.read_table(table, columns=columns, filters=only).to_pylist()
    return rows


def _locks(root: Path) -> Iterator[tuple[str, str]]:
    """(where, text) of dvc.lock in the working tree and in every commit of every branch that changed it."""
    if (root / "dvc.lock").exists():
        yield "working tree", (root / "dvc.lock").read_text()
    for commit in _git(root, "log", "--all", "--format=%h", "--", "dvc.lock").split():
        if text := _git(root, "show", f"{commit}:./dvc.lock"):
            yield commit, text


def _git(root: Path, *words: str) -> str:
    """What git prints; "" where there is no git, no repository or no such thing."""
    try:
        return git(root, *words, seconds=600)
    except (OSError, subprocess.CalledProcessError):
        return ""


def _outs(lock: str) -> Iterator[tuple[str, str]]:
    """(path, digest) of all that the stages of a dvc.lock wrote or read."""
    import yaml

    content = yaml.safe_load(lock) or {}
    for stage in (content.get("stages") or {}).values():
        for entry in (stage.get("outs") or []) + (stage.get("deps") or []):
            if "md5" in entry:
                yield str(entry["path"]), str(entry["md5"])


def _cache(root: Path) -> Path:
    """DVC's cache of the checkout: ``cache.dir`` of its configuration, or ``.dvc/cache``."""
    for name in ("config.local", "config"):
        config = configparser.ConfigParser()
        config.read(root / ".dvc" / name)
        if config.has_option("cache", "dir"):
            return Path(os.path.normpath(root / ".dvc" / config.get("cache", "dir")))
    return root / ".dvc/cache"


def _files(cache: Path, listing: Path) -> dict[str, Path]:
    """Relative path -> file in the cache, of a cached folder."""
    return {
        str(entry["relpath"]): cache / "files/md5" / entry["md5"][:2] / entry["md5"][2:]
        for entry in json.loads(listing.read_text())
    }
