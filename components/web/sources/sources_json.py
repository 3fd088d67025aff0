"""``sources.json``: the files a curation reads, whatever they are and wherever they lie."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from components.errors import VitrailError
from components.params import Strict
from components.storage import StorageParams, Store, atomic_file, is_remote, open_store
from components.web.sources.kinds import IMAGE_SUFFIXES, Left, SourceKind
from components.web.sources.listing import Listing, listing, shown, version_of
from components.web.sources.sidecars import beside, is_table

_KINDS: dict[SourceKind, str] = {
    "warc": "WARC (.warc, .warc.gz, .warc.zst)",
    "images": f"image ({', '.join(IMAGE_SUFFIXES)})",
    "tars": "tar shard (.tar)",
    "links": "WAT (.wat, .wat.gz, .wat.zst) or table of addresses (.parquet)",
}


_ASKED_EACH = 1000  # objects whose versions are asked for one by one; of more the whole prefix is listed


class SourceFile(Strict):
    """One file, by its path below the sources' root. A path need not be UTF-8 (surrogateescape, PEP 383)."""

    path: str
    kind: SourceKind
    # None: on an object store, where asking for each size would take a request
    bytes: int | None = Field(None, ge=0, le=2**50)
    sha256: str | None = None  # on local disk
    version: str | None = None  # size and ETag on an object store, where a digest would take reading it all


class Sources(Strict):
    """What to curate. ``root`` "" stands for the folder that holds ``sources.json`` itself.

    ``links`` and ``outcomes`` name tables in that folder, of images that were fetched after their links were known:
    every link (:data:`components.web.sources.link_table.LINKS`), and how each fetch ended. ``left`` counts what lay
    there and is not read, by reason (:data:`components.web.sources.kinds.LEFT`).
    """

    root: str
    files: tuple[SourceFile, ...]
    left: dict[Left, Annotated[int, Field(ge=0, le=10**12)]] = {}
    links: str = ""
    outcomes: str = ""

    def of(self, kind: SourceKind) -> tuple[SourceFile, ...]:
        """The files of one kind."""
        return tuple(file for file in self.files if file.kind == kind)

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

    def versions(self, store: Store) -> list[str]:
        """The versions of the files as they lie in ``store`` now, in order; no byte is read."""
        if is_remote(self.root) and len(self.files) > _ASKED_EACH:
            now = store.versions()
            return [now.get(file.path, "missing") for file in self.files]
        return [version_of(store, file.path) for file in self.files]

    def store(self, folder: Path, storage: StorageParams) -> Store:
        """The store below whose root the files lie."""
        if not self.root:
            return open_store(str(folder))
        return open_store(storage.model_copy(update={"root": self.root}))


def register(source: str, storage: StorageParams, kinds: Sequence[SourceKind] = ("warc", "images", "tars")) -> Sources:
    """List what lies at ``source``: a folder, one file, ``s3://bucket/prefix``, or a list of any of these files.

    A list is a text file (:data:`components.web.sources.listing.LIST_SUFFIXES`, gzipped or not) with a path or ``s3://``
    address a line; relative ones are taken from the list's own folder. ``kinds`` are those wanted; others are counted
    and left, as is all that cannot be read, with a line on stderr for each reason.

    Raises:
        VitrailError: nothing there, or nothing of a kind that is wanted.
    """
    found = listing(source, storage)
    texts = _texts(found, kinds)
    with_images = "images" in found.found or "tars" in found.found
    for kind, names in found.found.items():
        for name in names if kind not in kinds else ():
            found.leave(name, "unasked" if kind != "links" else _why_not(found.root, name, with_images))
    files: list[SourceFile] = []
    for kind in kinds:
        files += [file for name in found.found.get(kind, []) if (file := _described(found, name, kind)) is not None]
    if not files:
        raise VitrailError(_nothing(source, found, kinds))
    files += [file for name in texts if (file := _described(found, name, "text")) is not None]
    for line in found.lines():
        print(line, file=sys.stderr, flush=True)
    return Sources(root=found.root, files=tuple(files), left=dict(sorted(found.left.items())))


def _why_not(root: str, name: str, with_images: bool) -> Left:
    """Why a file that names images is left: a table may hold the images themselves, as those of Hugging Face do."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from components.tables.schemas import PARQUET_FAULTS

    if not name.lower().endswith(".parquet"):
        return "addresses"
    fields: list[pa.Field] = []
    if not is_remote(root):
        with contextlib.suppress(*PARQUET_FAULTS):
            fields = list(pq.read_schema(os.path.join(root, name)))
    for field in fields:
        inner = (
            [field.type.field(i) for i in range(field.type.num_fields)] if pa.types.is_struct(field.type) else [field]
        )
        if any(pa.types.is_binary(one.type) or pa.types.is_large_binary(one.type) for one in inner):
            return "image-table"
    return "table" if with_images else "addresses"


def _texts(found: Listing, kinds: Sequence[SourceKind]) -> list[str]:
    """The files that say something of the images, among texts and tables; the others are left."""
    images = found.found.get("images", []) if "images" in kinds else []
    texts = found.found.pop("text", [])
    tables = [name for name in (*texts, *found.found.get("links", [])) if is_table(name)] if images else []
    if tables and "links" in found.found:
        found.found["links"] = [name for name in found.found["links"] if not is_table(name)]
    speaking = {text for said in beside(images, texts).values() for text in said.texts}
    used = [text for text in texts if text in speaking]
    for name in texts:
        if name not in speaking and not (images and is_table(name)):
            found.leave(name, "other")
    return [*used, *tables]


def _nothing(source: str, found: Listing, kinds: Sequence[SourceKind]) -> str:
    """Why there is nothing to read at ``source``, in one line."""
    where = f"source {shown(source)}"
    if found.left.get("addresses") and "links" not in kinds:
        return (
            f"{where}: {found.left['addresses']} files that name images and hold none; to have the images fetched,"
            " write a .yaml with `kind: fetch` and `source:` (docs/curation.md)"
        )
    if missing := found.first.get("missing"):
        return f"{where}: names {shown(missing)}, which is no file ({found.left['missing']:,} such)"
    held = f"{sum(found.left.values()):,} files, none of them" if found.left else "empty, no"
    why = ", ".join(f"{reason} {count:,}" for reason, count in sorted(found.left.items()))
    wanted = ", ".join(_KINDS[kind] for kind in kinds)
    return f"{where}: {held} {wanted}{f' ({why})' if why else ''}; point it at your data"


def _described(found: Listing, name: str, kind: SourceKind) -> SourceFile | None:
    """The file's entry; None (and counted) where it cannot be read."""
    if is_remote(found.root):
        return SourceFile(path=name, kind=kind, version=found.versions.get(name))
    path = Path(found.root, name)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        found.leave(name, "unreadable")
        return None
    return SourceFile(path=name, kind=kind, bytes=size, sha256=sha256)
