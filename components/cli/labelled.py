"""A folder of labelled images, one sub-folder a class, as the Parquet file that a benchmark reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from components.errors import VitrailError
from components.storage import atomic_file

HELD_OUT = 0.2  # share of each class, where the folder has no split of its own
_TEST, _TRAIN = ("test", "val", "valid", "validation"), ("train", "training")
_GROUP = 256  # rows written at once, so that memory holds no more images than these


def write(folder: Path, out: Path) -> dict[str, int]:
    """Write ``out`` with the columns ``image``, ``label``, ``split`` and ``key``; returns the counts of each split.

    ``folder`` holds a sub-folder a class, or ``train`` and ``test`` with a sub-folder a class each. Without a split,
    every class gives ``HELD_OUT`` of its images to the test side, at least one: those whose bytes have the lowest
    SHA-256. So equal files are on one side, and a second call chooses the same images.

    Raises:
        VitrailError: no classes, one class, or a class with too few images.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(_split(folder))
    classes = {label for _, label, _ in rows}
    if len(classes) < 2:
        raise VitrailError(
            f"{folder}: {len(classes)} classes found; a benchmark needs a sub-folder for each of two classes or more, "
            "as in cats/1.jpg and dogs/2.jpg"
        )
    for label in sorted(classes):
        sides = {split for _, one, split in rows if one == label}
        if sides != {"train", "test"}:
            raise VitrailError(f"{folder}: class {label!r} has no {'test' if 'train' in sides else 'train'} image")
    schema = pa.schema([("image", pa.binary()), ("label", pa.string()), ("split", pa.string()), ("key", pa.string())])
    with atomic_file(out) as file, pq.ParquetWriter(file, schema) as table:
        for start in range(0, len(rows), _GROUP):
            part = rows[start : start + _GROUP]
            images = [path.read_bytes() for path, _, _ in part]
            keys = [path.relative_to(folder).as_posix() for path, _, _ in part]
            columns = [images, [label for _, label, _ in part], [split for _, _, split in part], keys]
            table.write_table(pa.table(columns, schema=schema))
    return {side: sum(split == side for _, _, split in rows) for side in ("train", "test")}


def _split(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """(file, class, "train" or "test") of every image."""
    below = {path.name.lower(): path for path in _folders(folder)}
    test = next((below[name] for name in _TEST if name in below), None)
    train = next((below[name] for name in _TRAIN if name in below), None)
    if test is not None and train is not None:
        for side, root in (("train", train), ("test", test)):
            yield from ((path, label, side) for label, paths in _classes(root) for path in paths)
        return
    for label, paths in _classes(folder):
        digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
        ordered = sorted(set(digests.values()))
        if len(ordered) < 2:
            raise VitrailError(f"{folder}: class {label!r} has {len(ordered)} different images; it needs two or more")
        held_out = set(ordered[: max(1, round(HELD_OUT * len(ordered)))])
        yield from ((path, label, "test" if digests[path] in held_out else "train") for path in paths)


def _classes(root: Path) -> Iterator[tuple[str, list[Path]]]:
    from components.web.sources.kinds import IMAGE_SUFFIXES

    for folder in _folders(root):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        images = [path for path in files if path.name.lower().endswith(IMAGE_SUFFIXES)]
        if images:
            yield folder.name, images


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
