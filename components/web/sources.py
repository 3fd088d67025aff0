"""``sources.json``: the files a curation reads, whatever they are and wherever they lie."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from components.errors import VitrailError
from components.params import Strict
from components.storage import StorageParams, Store, atomic_file, is_remote, open_store
from components.web.warc import is_warc, is_wat

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
LIST_SUFFIXES = (".txt", ".txt.gz", ".paths", ".paths.gz", ".list")

Kind = Literal["warc", "images", "tars", "links"]
_KINDS: dict[Kind, str] = {
    "warc": "WARC (.warc, .warc.gz, .warc.zst)",
    "images": f"image ({', '.join(IMAGE_SUFFIXES)})",
    "tars": "tar shard (.tar)",
    "links": "WAT (.wat, .wat.gz, .wat.zst) or table of addresses (.parquet)",
}


class SourceFile(Strict):
    """One file, by its path below the sources' root."""

    path: str
    bytes: int | None = None  # None: on an object store, where asking for each size would take a request
    sha256: str | None = None  # of files other than single images, on local disk


class Sources(Strict):
    """What to curate. ``root`` "" stands for the folder that holds ``sources.json`` itself.

    ``links`` and ``outcomes`` name tables in that folder, of images that were fetched after their links were known:
    every link (:data:`components.web.link_table.LINKS`), and how each fetch ended.
    """

    kind: Kind
    root: str
    files: tuple[SourceFile, ...]
    links: str = ""
    outcomes: str = ""

    @staticmethod
    def load(folder: Path) -> Sources:
        """Read ``folder/sources.json``.

        Raises:
            VitrailError: not there; run the crawl stage first.
        """
        path = folder / "sources.json"
        try:
            return Sources.model_validate(json.loads(path.read_text()))
        except FileNotFoundError:
            raise VitrailError(f"{path}: not there; run the crawl stage first") from None
        except ValueError as fault:
            raise VitrailError(f"{path}: not a sources file ({' '.join(str(fault).split())}); rerun crawl") from None

    def save(self, folder: Path) -> None:
        """Write ``folder/sources.json``."""
        with atomic_file(folder / "sources.json", "w") as file:
            json.dump(self.model_dump(), file, indent=1)

    def store(self, folder: Path, storage: StorageParams) -> Store:
        """The store below whose root the files lie."""
        if not self.root:
            return open_store(str(folder))
        return open_store(storage.model_copy(update={"root": self.root}))


def register(source: str, storage: StorageParams, kinds: Sequence[Kind] = ("warc", "images", "tars")) -> Sources:
    """List what lies at ``source``: a folder, one file, ``s3://bucket/prefix``, or a list of any of these files.

    A list is a text file (:data:`LIST_SUFFIXES`, gzipped or not) with a path or ``s3://`` address a line; relative
    ones are taken from the list's own folder. ``kinds`` are those wanted; "links" may stand beside "warc".

    Raises:
        VitrailError: nothing there, nothing in it, another kind than wanted, or kinds mixed.
    """
    root, names = _listed(source, storage)
    found: dict[Kind, list[str]] = {}
    for name in names:
        if kind := kind_of(name):
            found.setdefault(kind, []).append(name)
    if not found:
        held = f"{len(names)} files, none of them" if names else "empty, no"
        raise VitrailError(f"source {source}: {held} {', '.join(_KINDS[k] for k in kinds)}; point it at your data")
    if set(found) == {"links"} and "links" not in kinds:
        raise VitrailError(
            f"source {source}: {len(found['links'])} files that name images and hold none; to have the images fetched,"
            " write a .yaml with `kind: fetch` and `source:` (docs/curation.md)"
        )
    if unwanted := set(found) - set(kinds):
        kind = sorted(unwanted)[0]
        raise VitrailError(f"source {source}: {len(found[kind])} files of a kind not read here: {_KINDS[kind]}")
    if len(found) > 1 and not set(found) <= {"warc", "links"}:
        counts = " and ".join(f"{len(files)} {kind}" for kind, files in sorted(found.items()))
        raise VitrailError(f"source {source}: {counts} files mixed; point `source` at a folder of one kind")
    chosen: Kind = next(iter(found)) if len(found) == 1 else "links"
    files = tuple(_describe(root, name, chosen) for name in names if kind_of(name))
    return Sources(kind=chosen, root=root, files=files)


def kind_of(name: str) -> Kind | None:
    """What a file of this name holds; None for a file of no use here."""
    low = name.lower()
    if is_warc(low):
        return "warc"
    if is_wat(low) or low.endswith(".parquet"):
        return "links"
    if low.endswith(".tar"):
        return "tars"
    return "images" if low.endswith(IMAGE_SUFFIXES) else None


def _listed(source: str, storage: StorageParams) -> tuple[str, list[str]]:
    """The root and the names below it of all files at ``source``."""
    if is_remote(source):
        if kind_of(source):
            return source.rpartition("/")[0], [source.rpartition("/")[2]]
        root = source.rstrip("/")
        return root, list(open_store(storage.model_copy(update={"root": root})).list())
    if os.path.isfile(source):
        if source.lower().endswith(LIST_SUFFIXES):
            return _from_list(source)
        root, name = os.path.split(source)
        return root or ".", [name]
    if not os.path.isdir(source):
        raise VitrailError(
            f"source {source}: no such file or folder; set `source` in params/pipeline.yaml (or --source)"
        )
    names = sorted(
        Path(folder, name).relative_to(source).as_posix()
        for folder, _, files in os.walk(source)
        for name in files
        if not name.startswith(".")
    )
    return source.rstrip("/") or "/", names


def _from_list(source: str) -> tuple[str, list[str]]:
    """Files named by a list, as the deepest folder that holds them all and their paths below it."""
    folder = os.path.dirname(os.path.abspath(source))
    try:
        with gzip.open(source, "rt") if source.lower().endswith(".gz") else open(source) as file:
            lines = [line.strip() for line in file]
    except (OSError, EOFError, UnicodeDecodeError) as fault:
        raise VitrailError(f"source {source}: not a readable list of files ({fault})") from None
    paths = [line if is_remote(line) else os.path.join(folder, line) for line in lines if line and line[0] != "#"]
    if not paths:
        raise VitrailError(f"source {source}: an empty list; write a path or s3:// address a line")
    if len({is_remote(path) for path in paths}) > 1:
        raise VitrailError(f"source {source}: local paths and s3:// addresses mixed; make two lists")
    if is_remote(paths[0]):
        split = [path.removeprefix("s3://").split("/") for path in paths]
        together = zip(*(parts[:-1] for parts in split), strict=False)
        common = [names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, together)]
        if not common:
            raise VitrailError(f"source {source}: several buckets; make a list for each")
        return "s3://" + "/".join(common), ["/".join(parts[len(common) :]) for parts in split]
    for path in paths:
        if not os.path.isfile(path):
            raise VitrailError(f"source {source}: names {path}, which is no file")
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return root, [Path(path).relative_to(root).as_posix() for path in paths]


def _describe(root: str, name: str, kind: Kind) -> SourceFile:
    if is_remote(root):
        return SourceFile(path=name)
    path = Path(root, name)
    sha256 = None
    if kind != "images":
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return SourceFile(path=name, bytes=path.stat().st_size, sha256=sha256)
