"""Read the pool's images chunk by chunk, for thumbnails to learn from and for descriptors; finished chunks are kept.

A chunk is a range of index rows. Its result stands on disk under a name that holds the fingerprint of everything it
depends on, so a stage that was stopped carries on, and no stale result is ever taken for a fresh one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.dedup.descriptors import Descriptor, DescriptorParams, load_descriptor
from components.dedup.views import RGB, reduce, squash, windows
from components.errors import VitrailError
from components.executor import ExecutorParams, map_shards
from components.images.tables import INDEX, Shards, read_table
from components.progress import track
from components.storage import StorageParams, Store, atomic_file


@dataclass(frozen=True)
class Pool:
    """The kept rows of a curated set, in index order, and where their bytes are."""

    curated: Path
    storage: StorageParams
    rows: pa.Table  # tables.INDEX

    @staticmethod
    def load(curated: Path, storage: StorageParams) -> Pool:
        """Read index and shards of ``curated``.

        Raises:
            VitrailError: a table is missing, nothing was kept, or a kept row names a shard that is not there.
        """
        index = read_table(curated / "index.parquet", INDEX)
        rows = index.filter(pc.equal(index["status"], "kept")).combine_chunks()
        if not len(rows):
            raise VitrailError(f"{curated / 'index.parquet'}: no kept image; see its reasons, and curate again")
        known = Shards.load(curated).shards
        for shard in pc.unique(rows["shard"]).to_pylist():
            if shard not in known:
                raise VitrailError(
                    f"{curated}: index and shards do not match: no {shard!r} in shards.json; curate again"
                )
        return Pool(curated, storage, rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keys(self) -> list[str]:
        """Keys in index order."""
        keys: list[str] = self.rows["key"].to_pylist()
        return keys

    def store(self) -> Store:
        """The store of the shards."""
        return Shards.load(self.curated).store(self.curated, self.storage)

    def rgb(self, row: int, store: Store | None = None) -> RGB:
        """Image ``row`` as uint8 [H, W, 3]."""
        place = self.rows.slice(row, 1).to_pylist()[0]
        return _picture(store or self.store(), place)


@dataclass(frozen=True)
class _Chunk:
    """What a worker needs to read a range of rows; small, for it travels between processes."""

    curated: Path
    storage: StorageParams
    places: list[dict[str, Any]]
    out: Path


class Thumbnails(Sequence[RGB]):
    """Pictures [side, side, 3] uint8 in memory-mapped chunks on disk, all of one length but the last."""

    def __init__(self, chunks: Sequence[Path]) -> None:
        self._chunks = [np.load(path, mmap_mode="r", allow_pickle=False) for path in chunks]
        self._each = len(self._chunks[0]) if self._chunks else 1

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    @overload
    def __getitem__(self, row: int) -> RGB: ...
    @overload
    def __getitem__(self, row: slice) -> list[RGB]: ...
    def __getitem__(self, row: int | slice) -> RGB | list[RGB]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        return np.asarray(self._chunks[row // self._each][row % self._each])


class Decoded(Sequence[RGB]):
    """The pool's ``rows`` squashed to [side, side, 3], read and decoded at each access."""

    def __init__(self, pool: Pool, rows: NDArray[np.int64], side: int) -> None:
        self._pool, self._rows, self._side, self._store = pool, rows, side, pool.store()

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> RGB: ...
    @overload
    def __getitem__(self, row: slice) -> list[RGB]: ...
    def __getitem__(self, row: int | slice) -> RGB | list[RGB]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        return squash(self._pool.rgb(int(self._rows[row]), self._store), self._side)


def thumbnails(
    pool: Pool, rows: NDArray[np.int64], side: int, work: Path, executor: ExecutorParams, chunk: int
) -> Thumbnails:
    """Squashed thumbnails [side, side, 3] of the pool's ``rows``."""
    parts = _chunks(pool, rows, work, f"thumbnail-{side}", chunk)
    _finish(partial(_thumbnail_chunk, side), parts, executor, "copy descriptor: thumbnails")
    return Thumbnails([part.out for part in parts])


def describe(
    pool: Pool,
    params: DescriptorParams,
    weights: Path,
    work: Path,
    executor: ExecutorParams,
    chunk: int,
    grid: Sequence[tuple[float, int]] = (),
) -> NDArray[np.float16]:
    """Descriptors [N, R, dim] fp16 of every row of the pool, in index order: the whole image, then its windows."""
    parts = _chunks(pool, np.arange(len(pool)), work, "descriptor", chunk)
    function = partial(_descriptor_chunk, params, weights, pool.storage, tuple(grid))
    rows: NDArray[np.float16] = _run(function, parts, executor, "descriptors of the pool")
    return rows


def describe_pictures(
    descriptor: Descriptor, pictures: Iterable[RGB], grid: Sequence[tuple[float, int]] = (), block: int = 256
) -> NDArray[np.float16]:
    """Descriptors [n, R, dim] fp16 of n pictures [H, W, 3], which need not fit in memory together.

    R counts the picture itself, first, and the windows of ``grid`` (:func:`components.dedup.views.windows`).
    """
    each = 1 + sum(count * count for _, count in grid)
    rows: list[NDArray[np.float16]] = []
    held: list[RGB] = []
    for picture in pictures:
        held += [descriptor.prepare(window) for window in windows(reduce(picture, descriptor.side), grid)]
        if len(held) >= block:
            rows.append(descriptor.embed(held).astype(np.float16))
            held = []
    if held:
        rows.append(descriptor.embed(held).astype(np.float16))
    joined = np.concatenate(rows) if rows else np.empty((0, descriptor.dim), np.float16)
    return joined.reshape(-1, each, descriptor.dim)


def _chunks(pool: Pool, rows: NDArray[np.int64], work: Path, name: str, chunk: int) -> list[_Chunk]:
    table = pool.rows.select(["key", "shard", "offset", "length"])
    return [
        _Chunk(
            pool.curated,
            pool.storage,
            table.take(pa.array(rows[start : start + chunk])).to_pylist(),
            work / f"{name}-{start:09d}.npy",
        )
        for start in range(0, len(rows), chunk)
    ]


def _run(function: Callable[[_Chunk], Path], parts: list[_Chunk], executor: ExecutorParams, label: str) -> NDArray[Any]:
    _finish(function, parts, executor, label)
    return np.concatenate([np.load(part.out, allow_pickle=False) for part in parts])


def _finish(function: Callable[[_Chunk], Path], parts: list[_Chunk], executor: ExecutorParams, label: str) -> None:
    """See to it that every part's file is there."""
    done = [part.out.exists() for part in parts]
    todo = [part for part, finished in zip(parts, done, strict=True) if not finished]
    for _ in track(map_shards(function, todo, executor), label, len(todo), unit="chunks"):
        pass


def _thumbnail_chunk(side: int, chunk: _Chunk) -> Path:
    return _save(chunk.out, np.stack([squash(picture, side) for picture in _pictures(chunk)]))


def _descriptor_chunk(
    params: DescriptorParams, weights: Path, storage: StorageParams, grid: tuple[tuple[float, int], ...], chunk: _Chunk
) -> Path:
    descriptor = load_descriptor(params, weights, storage)
    return _save(chunk.out, describe_pictures(descriptor, _pictures(chunk), grid))


def _pictures(chunk: _Chunk) -> Iterator[RGB]:
    store = Shards.load(chunk.curated).store(chunk.curated, chunk.storage)
    for place in chunk.places:
        yield _picture(store, place)


def _picture(store: Store, place: dict[str, Any]) -> RGB:
    from components.images.decode import DecodeError, DecodeLimits, decode

    try:
        return decode(store.read(place["shard"], place["offset"], place["length"]), DecodeLimits())
    except DecodeError as fault:
        where = f"{store.root}/{place['shard']} at {place['offset']}"
        raise VitrailError(
            f"{where}: index and shards do not match: no image for key {place['key']} ({fault.reason}); curate again"
        ) from None


def _save(path: Path, array: NDArray[Any]) -> Path:
    with atomic_file(path) as file:
        np.save(file, array, allow_pickle=False)
    return path
