"""Read the pool's images chunk by chunk, for thumbnails to learn from and for descriptors; finished chunks are kept.

A chunk is a range of index rows. A file holds a chunk's thumbnails. Descriptors go straight into their place of one
file over the whole pool, and a list of the keys that were read says, once it is there, that a chunk is complete. The
folder's name holds the fingerprint of everything these depend on (components/dedup/pool/scratch.py), so a stage that
was stopped carries on, and no stale result is ever taken for a fresh one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from components.dedup.pool.images import PLACE, Pool
from components.descriptors.kinds import Descriptor, DescriptorParams, load_descriptor
from components.descriptors.rows import DescriptorRows
from components.descriptors.views import WHOLE, Views, reduce, squash
from components.errors import VitrailError
from components.executor import ExecutorParams, map_shards
from components.images.samples import RGB
from components.progress import track
from components.storage import Store, atomic_file


@dataclass(frozen=True)
class _Chunk:
    """What a worker needs to read a range of rows; small, for it travels between processes."""

    pool: Pool
    rows: NDArray[np.int64] | slice  # which; a slice where they follow each other
    start: int  # the first one's number
    out: Path

    def places(self) -> list[dict[str, Any]]:
        """Key, shard, offset and length of each."""
        rows = self.rows
        table = (
            self.pool.slice(rows.start, rows.stop, PLACE) if isinstance(rows, slice) else self.pool.take(rows, PLACE)
        )
        found: list[dict[str, Any]] = table.to_pylist()
        return found


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
    parts = [work / f"thumbnail-{side}-{start:012d}.npy" for start in range(0, len(rows), chunk)]
    label = "copy descriptor: thumbnails"
    _finish(partial(_thumbnail_chunk, side), _Chunks(pool, rows, chunk, parts), executor, label)
    return Thumbnails(parts)


@dataclass(frozen=True)
class Describing:
    """How images are described."""

    params: DescriptorParams
    weights: Path  # the descriptor's own folder
    views: Views = WHOLE


def describe(pool: Pool, how: Describing, work: Path, executor: ExecutorParams, chunk: int) -> DescriptorRows:
    """Descriptors [N, R, dim] fp16 of the R views of every row of the pool, in index order.

    They are never all in memory: each chunk is written to its place in one file.

    Raises:
        VitrailError: an image cannot be read, or its descriptor is NaN or zero; its key is named.
    """
    descriptor = load_descriptor(how.params, how.weights, pool.storage)
    path = work / "descriptors.npy"
    parts = [work / f"described-{start:012d}.txt" for start in range(0, len(pool), chunk)]
    _allocate(path, (len(pool), len(how.views), descriptor.dim), parts)
    function = partial(_descriptor_chunk, how, path)
    chunks = _Chunks(pool, None, chunk, parts)
    _finish(function, chunks, executor, "descriptors of the pool")
    return DescriptorRows(path)


def described_keys(work: Path) -> Iterator[list[str]]:
    """The keys of the images that :func:`describe` read, in the order of its rows, chunk by chunk."""
    for part in sorted(work.glob("described-*.txt")):
        yield part.read_text().split()


def gathered(rows: NDArray[Any], which: NDArray[np.int64], path: Path, block: int = 1 << 16) -> NDArray[Any]:
    """``rows[which]``, memory-mapped in the file ``path``, copied there in blocks."""
    header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (len(which), *rows.shape[1:])}
    with open(path, "wb") as file:  # not through the map: a full disk would then end the process
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(which), block):
            file.write(np.ascontiguousarray(rows[which[start : start + block]]).data)
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def check_described(rows: NDArray[Any], name: Callable[[int], str]) -> None:
    """Raise a :class:`VitrailError` that calls image i ``name(i)`` where one of ``rows`` [n, R, d] has no direction."""
    norms = np.linalg.norm(np.asarray(rows, np.float32), axis=2)
    for bad, what, then in (
        (
            ~np.isfinite(norms),
            "holds NaN or infinity",
            "the descriptor's weights are broken, or do not suit the picture",
        ),
        (
            norms == 0,
            "is all zeros, and is like nothing",
            "the picture shows nothing that it measures, one flat colour say",
        ),
    ):
        if bad.any():
            image, view = (int(i) for i in np.argwhere(bad)[0])
            part = f" (view {view})" if view else ""
            more = f", and those of {bad.any(1).sum() - 1:,} others of {len(rows):,}" if bad.any(1).sum() > 1 else ""
            raise VitrailError(
                f"{name(image)}: its copy descriptor{part} {what}{more}; {then}: choose another descriptor, or take "
                "the image out of the set"
            )


def describe_pictures(
    descriptor: Descriptor, pictures: Iterable[RGB], views: Views = WHOLE, block: int = 256
) -> NDArray[np.float16]:
    """Descriptors [n, R, dim] fp16 of R ``views`` of n pictures [H, W, 3], which need not fit in memory together."""
    rows: list[NDArray[np.float16]] = []
    held: list[RGB] = []
    for picture in pictures:
        held += [descriptor.prepare(view) for view in views.of(reduce(picture, descriptor.side))]
        if len(held) >= block:
            rows.append(descriptor.embed(held).astype(np.float16))
            held = []
    if held:
        rows.append(descriptor.embed(held).astype(np.float16))
    joined = np.concatenate(rows) if rows else np.empty((0, descriptor.dim), np.float16)
    return joined.reshape(-1, len(views), descriptor.dim)


@dataclass(frozen=True)
class _Chunks:
    """The chunks of ``rows``, each made when it is asked for: of a large pool they are many."""

    pool: Pool
    rows: NDArray[np.int64] | None  # None: all
    each: int
    outs: Sequence[Path]

    def unfinished(self) -> list[int]:
        return [number for number, out in enumerate(self.outs) if not out.exists()]

    def make(self, number: int) -> _Chunk:
        start, stop = number * self.each, (number + 1) * self.each
        if self.rows is None:
            stop = min(stop, len(self.pool))
            return _Chunk(self.pool.narrowed(start, stop), slice(start, stop), start, self.outs[number])
        rows = self.rows[start:stop]
        pool = self.pool.narrowed(int(rows.min()), int(rows.max()) + 1)
        return _Chunk(pool, rows, start, self.outs[number])


def _finish(function: Callable[[_Chunk], Path], chunks: _Chunks, executor: ExecutorParams, label: str) -> None:
    """See to it that every chunk's file is there."""
    todo = chunks.unfinished()
    for _ in track(map_shards(function, map(chunks.make, todo), executor), label, len(todo), unit="chunks"):
        pass


def _thumbnail_chunk(side: int, chunk: _Chunk) -> Path:
    made = np.stack([squash(picture, side) for picture in _pictures(chunk, chunk.places())])
    with atomic_file(chunk.out) as file:
        np.save(file, made, allow_pickle=False)
    return chunk.out


def _descriptor_chunk(how: Describing, path: Path, chunk: _Chunk) -> Path:
    descriptor = load_descriptor(how.params, how.weights, chunk.pool.storage)
    places = chunk.places()
    rows = describe_pictures(descriptor, _pictures(chunk, places), how.views)
    check_described(rows, lambda i: f"image {places[i]['key']} ({places[i]['shard']} at {places[i]['offset']})")
    _put(path, chunk.start, rows)
    with atomic_file(chunk.out, "w") as file:
        file.write("".join(f"{place['key']}\n" for place in places))
    return chunk.out


def _allocate(path: Path, shape: tuple[int, int, int], finished: Sequence[Path]) -> None:
    """An empty fp16 file of ``shape`` at ``path``; where it is new, no chunk of it is finished."""
    if path.exists() and DescriptorRows(path).open().shape == shape:
        return
    for part in finished:
        part.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    np.lib.format.open_memmap(aside, "w+", np.float16, shape).flush()
    os.replace(aside, path)


def _put(path: Path, start: int, rows: NDArray[np.float16]) -> None:
    """Write ``rows`` into the file at ``path`` from row ``start``; several processes may, each its own rows."""
    with open(path, "r+b") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        file.seek(start * rows[0].nbytes, os.SEEK_CUR)
        file.write(np.ascontiguousarray(rows).data)
        file.flush()
        os.fsync(file.fileno())


def _pictures(chunk: _Chunk, places: list[dict[str, Any]]) -> Iterator[RGB]:
    store = chunk.pool.store()
    for place in places:
        yield read_picture(store, place)


def read_picture(store: Store, place: dict[str, Any]) -> RGB:
    """The picture [H, W, 3] at ``place`` (shard, offset, length; key, for messages).

    Raises:
        VitrailError: what is there is no picture.
    """
    return decode_picture(store.read(place["shard"], place["offset"], place["length"]), store, place)


def decode_picture(data: bytes, store: Store, place: dict[str, Any]) -> RGB:
    """The picture [H, W, 3] of the bytes that were read at ``place``.

    Raises:
        VitrailError: they are no picture.
    """
    from components.images.decode import DecodeError, DecodeLimits, decode

    try:
        return decode(data, DecodeLimits())
    except DecodeError as fault:
        where = f"{store.root}/{place['shard']} at {place['offset']}"
        raise VitrailError(
            f"{where}: index and shards do not match: no image for key {place['key']} ({fault.reason}); curate again"
        ) from None
