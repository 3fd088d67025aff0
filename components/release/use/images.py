"""Images by what names them: a file, a folder, tar shards, a manifest, a Parquet table, or a prefix on S3.

A source is cut into parts that travel to worker processes as a few names; bytes are read where they are used.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from components.errors import VitrailError
from components.images.dataset import ManifestDataset
from components.storage import ObjectUnreadable, StorageParams, is_remote, open_store
from components.web.sources.kinds import IMAGE_SUFFIXES
from components.web.sources.tars import samples

PartKind = Literal["files", "tar", "manifest", "table"]
IMAGE_COLUMNS = ("image", "bytes", "jpg", "png")  # of a Parquet table, in this order, unless one is named
KEY_COLUMNS = ("key", "id", "url")


@dataclass(frozen=True)
class SourcePart:
    """Some images of a source, in order."""

    number: int
    kind: PartKind
    root: str  # the folder, file or prefix that holds them
    names: tuple[str, ...] = ()  # of "files": below the root; of "tar": of the members
    places: tuple[tuple[int, int], ...] = ()  # of "tar": offset and length of each
    start: int = 0  # of "manifest" and "table": rows start ... stop
    stop: int = 0
    columns: tuple[str, str] = ("", "")  # of "table": image and key; "": keys are row numbers
    curated: str = ""  # of "manifest": the folder of its shards

    def __len__(self) -> int:
        return len(self.names) if self.kind in ("files", "tar") else self.stop - self.start


@dataclass(frozen=True)
class Places:
    """Where the images are that a manifest or S3 name."""

    curated: Path = Path("data/curate")  # the shards of a manifest
    storage: StorageParams = field(default_factory=lambda: StorageParams(root="data"))


def parts_of(source: str, rows: int, places: Places) -> list[SourcePart]:
    """The images of ``source`` in parts of at most ``rows``.

    Raises:
        VitrailError: not there, of no known kind, or without a single image.
    """
    found: list[SourcePart] = []
    if is_remote(source):
        store = open_store(places.storage.model_copy(update={"root": source}))
        names = [name for name in store.list() if name.lower().endswith(IMAGE_SUFFIXES)]
        found = _cut(names, rows, source)
    elif (path := Path(source)).is_dir():
        tars = sorted(path.rglob("*.tar"))
        names = sorted(each.relative_to(path).as_posix() for each in path.rglob("*") if _is_image_file(each))
        found = _cut(names, rows, source)
        for tar in tars:
            found += _tar(tar, rows)
        found += _tables(path, rows, places)
    elif path.suffix == ".tar" and path.is_file():
        found = _tar(path, rows)
    elif path.suffix == ".parquet" and path.is_file():
        found = _parquet(path, rows, places)
    elif path.is_file():
        found = [SourcePart(0, "files", str(path.parent), (path.name,))]
    else:
        raise VitrailError(
            f"{source}: no images there; give an image, a folder, a .tar, a manifest or table (.parquet), or s3://"
        )
    if not found:
        raise VitrailError(f"{source}: holds no image; known are {', '.join(IMAGE_SUFFIXES[:6])} and more, and .tar")
    return [replace(part, number=number) for number, part in enumerate(found)]


def digest_of(parts: Sequence[SourcePart]) -> str:
    """A SHA-256 (hex) of which images the parts name, and of the sizes and times of their local files."""
    content = hashlib.sha256()
    for part in parts:
        content.update(repr(part).encode())
        if not is_remote(part.root):
            paths = [Path(part.root, name) for name in part.names] if part.kind == "files" else [Path(part.root)]
            for path in paths:
                stat = path.stat()
                content.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return content.hexdigest()


def read_part(part: SourcePart, storage: StorageParams) -> Iterator[tuple[str, bytes | VitrailError]]:
    """Key and encoded bytes of each image of ``part``, in order; the fault instead where one file cannot be read."""
    if part.kind == "files":
        store = open_store(storage.model_copy(update={"root": part.root}))
        for name in part.names:
            try:
                yield name, store.read(name)
            except ObjectUnreadable as fault:
                yield name, fault
    elif part.kind == "tar":
        with open(part.root, "rb") as file:
            for name, (offset, length) in zip(part.names, part.places, strict=True):
                file.seek(offset)
                yield name, file.read(length)
    elif part.kind == "manifest":
        dataset = _dataset(part.curated, part.root, storage)
        for address in dataset.addresses(range(part.start, part.stop)):
            yield address.key, dataset.read(address)
    else:
        yield from _table_rows(part)


def single(parts: Sequence[SourcePart], row: int) -> SourcePart:
    """The one image of that row of the source as a part.

    Raises:
        IndexError: the source has fewer images.
    """
    for part in parts:
        if row < len(part):
            one = slice(row, row + 1)
            start = part.start + row
            return replace(part, names=part.names[one], places=part.places[one], start=start, stop=start + 1)
        row -= len(part)
    raise IndexError(row)


def _is_image_file(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".") and path.is_file()


def _cut(names: list[str], rows: int, root: str) -> list[SourcePart]:
    return [SourcePart(0, "files", root, tuple(names[start : start + rows])) for start in range(0, len(names), rows)]


def _tar(path: Path, rows: int) -> list[SourcePart]:
    members = [sample.member for sample in samples(path, Counter())]
    return [
        SourcePart(
            0, "tar", str(path),
            names=tuple(member.name for member in members[start : start + rows]),
            places=tuple((member.offset, member.length) for member in members[start : start + rows]),
        )
        for start in range(0, len(members), rows)
    ]  # fmt: skip


def _tables(folder: Path, rows: int, places: Places) -> list[SourcePart]:
    """The tables right in ``folder``: the parts of one manifest together, any others one by one."""
    from components.tables.parts import part_rows
    from components.tables.schemas import MANIFEST

    found = [part for file in sorted(folder.glob("*.parquet")) for part in _parquet(file, rows, places)]
    if not found or found[0].kind != "manifest":
        return found
    count = sum(part_rows(folder, MANIFEST))
    whole = SourcePart(0, "manifest", str(folder), curated=str(places.curated))
    return [replace(whole, start=start, stop=min(start + rows, count)) for start in range(0, count, rows)]


def _parquet(path: Path, rows: int, places: Places) -> list[SourcePart]:
    import pyarrow.parquet as pq

    from components.tables.schemas import PARQUET_FAULTS

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            schema, count = file.schema_arrow, int(file.metadata.num_rows)
    except PARQUET_FAULTS as fault:
        raise VitrailError(f"{path}: no readable Parquet file ({' '.join(str(fault).split())[:100]})") from None
    if (schema.metadata or {}).get(b"vitrail.table") == b"manifest":
        whole = SourcePart(0, "manifest", str(path), curated=str(places.curated))
    else:
        image = next(
            (name for name in IMAGE_COLUMNS if name in schema.names and _holds_bytes(schema.field(name))), None
        )
        if image is None:
            raise VitrailError(
                f"{path}: no column of image bytes ({', '.join(IMAGE_COLUMNS)}) and no manifest; "
                f"it has {', '.join(schema.names[:8])}"
            )
        key = next((name for name in KEY_COLUMNS if name in schema.names), "")
        whole = SourcePart(0, "table", str(path), columns=(image, key))
    starts = range(0, count, rows)
    return [replace(whole, start=start, stop=min(start + rows, count)) for start in starts]


def _holds_bytes(column: Any) -> bool:
    import pyarrow.types as types

    kind = column.type
    if types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _table_rows(part: SourcePart) -> Iterator[tuple[str, bytes | VitrailError]]:
    """Rows of a table: bytes in a binary column, or in the field ``bytes`` of a struct, as Hugging Face has it."""
    import pyarrow.parquet as pq

    image, key = part.columns
    wanted = [image, key] if key else [image]
    at = 0
    with pq.ParquetFile(part.root, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if at + count > part.start and at < part.stop:
                for batch in file.iter_batches(256, row_groups=[group], columns=wanted):
                    for row in batch.to_pylist():
                        if part.start <= at < part.stop:
                            data = row[image]["bytes"] if isinstance(row[image], dict) else row[image]
                            name = str(row[key]) if key else str(at)
                            yield name, VitrailError("no bytes in this row") if data is None else data
                        at += 1
            else:
                at += count


@lru_cache(maxsize=4)
def _dataset(curated: str, manifest: str, storage: StorageParams) -> ManifestDataset:
    return ManifestDataset(Path(curated), Path(manifest), storage)
