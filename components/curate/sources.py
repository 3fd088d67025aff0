"""``sources.json``: the files a curation reads, whatever they are and wherever they lie."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from components.curate.warc import is_warc
from components.errors import VitrailError
from components.params import Strict
from components.storage import StorageParams, Store, atomic_file, is_remote, open_store

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class SourceFile(Strict):
    """One file, by its path below the sources' root."""

    path: str
    bytes: int | None = None  # None: on an object store, where asking for each size would take a request
    sha256: str | None = None  # of WARC files on local disk


class Sources(Strict):
    """What to curate. ``root`` "" stands for the folder that holds ``sources.json`` itself."""

    kind: Literal["warc", "images"]
    root: str
    files: tuple[SourceFile, ...]

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


def register(source: str, storage: StorageParams) -> Sources:
    """List the WARC files or images at ``source``: a folder, one file, or ``s3://bucket/prefix``.

    Raises:
        VitrailError: nothing there, nothing in it, or WARC files and images mixed.
    """
    if is_remote(source):
        root = source.rstrip("/")
        names = list(open_store(storage.model_copy(update={"root": root})).list())
    elif os.path.isfile(source):
        root, name = os.path.split(source)
        root, names = root or ".", [name]
    elif os.path.isdir(source):
        root = source.rstrip("/") or "/"
        names = sorted(
            Path(folder, name).relative_to(source).as_posix()
            for folder, _, files in os.walk(source)
            for name in files
            if not name.startswith(".")
        )
    else:
        raise VitrailError(
            f"source {source}: no such file or folder; set `source` in params/pipeline.yaml (or --source)"
        )
    warcs = [name for name in names if is_warc(name)]
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    if not warcs and not images:
        held = f"{len(names)} files, none of them" if names else "empty, no"
        raise VitrailError(
            f"source {source}: {held} WARC (.warc, .warc.gz) or image ({', '.join(IMAGE_SUFFIXES)});"
            " point it at your data"
        )
    if warcs and images:
        raise VitrailError(
            f"source {source}: {len(warcs)} WARC files and {len(images)} images mixed;"
            " point `source` at a folder of one kind"
        )
    files = tuple(_describe(root, name, bool(warcs)) for name in warcs or images)
    return Sources(kind="warc" if warcs else "images", root=root, files=files)


def _describe(root: str, name: str, digest: bool) -> SourceFile:
    if is_remote(root):
        return SourceFile(path=name)
    path = Path(root, name)
    sha256 = None
    if digest:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return SourceFile(path=name, bytes=path.stat().st_size, sha256=sha256)
