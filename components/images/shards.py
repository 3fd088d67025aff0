"""Tar shards that any WebDataset reader opens, written once, with the offset of every image known.

The same tar gives streaming (member after member) and random access (``store.read(shard, offset, length)``). Its bytes
depend only on what is added: no times, owners or modes of this machine get in.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from components.errors import VitrailError
from components.storage import StorageParams, Store, atomic_file, open_store

_BLOCK = 512


@dataclass(frozen=True)
class Location:
    """Where an image's bytes are: tar name, offset of its first byte, length in bytes."""

    shard: str
    offset: int
    length: int


def erase(path: Path, places: Iterable[tuple[int, int]]) -> None:
    """Overwrite members of the tar at ``path``, by (offset, length) of their bytes; every other byte stays in place.

    What was a member becomes a header that readers skip (a pax global header, its one record a comment of blanks), or
    zeros behind the last member that is left: no reader meets a picture that is none, and offsets into the tar keep
    their meaning. Erased members may be erased again.

    Raises:
        ValueError: a member of less than 32 bytes, which no image is, has no room for that.
    """
    lengths = dict(places)
    if min(lengths.values(), default=32) < 32:
        raise ValueError(f"{path}: a member of {min(lengths.values())} bytes cannot be blanked")
    with tarfile.open(path) as tar:
        ends = [one.offset_data + -(-one.size // _BLOCK) * _BLOCK for one in tar if one.offset_data not in lengths]
    last = max(ends, default=0)
    with open(path, "r+b") as file:
        for offset, length in lengths.items():
            if offset > last:
                continue
            head = tarfile.TarInfo("forgotten")
            head.type, head.size, head.mode = tarfile.XGLTYPE, length, 0o644
            file.seek(offset - _BLOCK)
            file.write(head.tobuf(tarfile.USTAR_FORMAT))
            begin = f"{length} comment=".encode()
            file.write(begin + b" " * (length - len(begin) - 1) + b"\n")
        left = file.seek(0, os.SEEK_END) - last
        file.seek(last)
        while left:
            left -= file.write(bytes(min(1 << 20, left)))


class ShardWriter:
    """Writes ``<prefix>-NN.tar`` files of at most ``max_bytes`` into ``store``, each whole or not at all.

    Use as a context manager: leaving it without an exception commits the last shard; with one, drops it.
    ``shards`` then holds name -> {"sha256": hex, "bytes": int} of the committed shards.
    """

    def __init__(self, store: Store, prefix: str, max_bytes: int) -> None:
        self.shards: dict[str, dict[str, object]] = {}
        self._store, self._prefix, self._max_bytes = store, prefix, max_bytes
        self._folder = tempfile.TemporaryDirectory(prefix="vitrail-shard-")
        self._path = Path(self._folder.name) / "shard.tar"
        self._tar: tarfile.TarFile | None = None

    def add(self, key: str, extension: str, data: bytes) -> Location:
        """Append ``data`` as member ``<key>.<extension>``; a shard begins when it would not fit the last one.

        Raises:
            ValueError: the member's name does not fit one tar header (100 bytes), so its offset would be another.
        """
        name = f"{key}.{extension}"
        if len(name.encode()) > 100:
            raise ValueError(f"tar member name longer than 100 bytes: {name}")
        needed = _BLOCK + -(-len(data) // _BLOCK) * _BLOCK
        if self._tar is not None and self._tar.offset > 0 and self._tar.offset + needed > self._max_bytes:
            self._commit()
        if self._tar is None:
            self._tar = tarfile.open(self._path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by _commit
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        location = Location(self._name(), self._tar.offset + _BLOCK, len(data))
        self._tar.addfile(info, io.BytesIO(data))
        return location

    def _name(self) -> str:
        return f"{self._prefix}-{len(self.shards):02d}.tar"

    def _commit(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        with open(self._path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = self._name()
        self._store.put_file(name, self._path)
        self.shards[name] = {"sha256": digest, "bytes": self._path.stat().st_size}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
            elif self._tar is not None:
                self._tar.close()
        finally:
            self._folder.cleanup()


def data_digest(manifest: Iterable[Path], shards: Mapping[str, Mapping[str, object]]) -> str:
    """SHA-256 (hex) of a training set: the bytes of its ``manifest``'s parts, and the digests of the shards."""
    digest = hashlib.sha256()
    for part in manifest:
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    for name, entry in sorted(shards.items()):
        digest.update(f"{name}={entry['sha256']}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Shards:
    """Where the shards of an index are (``shards.json`` beside the index), and their digests.

    ``base`` is ``""`` when they are in the folder ``shards/`` beside the file (the default: DVC tracks them with it),
    else the store's root, such as ``s3://bucket/prefix/curate``.
    """

    base: str
    shards: dict[str, dict[str, object]]  # name -> {"sha256": hex, "bytes": int}

    @staticmethod
    def load(curated: Path) -> Shards:
        """Read ``curated/shards.json``."""
        path = curated / "shards.json"
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise VitrailError(f"{path}: not there; run the curate stage first") from None
        return Shards(content["base"], content["shards"])

    def save(self, curated: Path) -> None:
        """Write ``curated/shards.json``."""
        with atomic_file(curated / "shards.json", "w") as file:
            json.dump({"base": self.base, "shards": self.shards}, file, indent=1, sort_keys=True)

    def store(self, curated: Path, storage: StorageParams) -> Store:
        """The store that holds the shards, whatever folder the curated set was moved to."""
        if not self.base:
            return open_store(str(curated / "shards"))
        return open_store(storage.model_copy(update={"root": self.base}))
