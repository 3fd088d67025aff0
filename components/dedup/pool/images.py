"""The kept images of a curated set, by number: read part by part, never held.

Row i is the i-th kept row of the index. Only how many kept rows stand before each row group of the index is in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.errors import VitrailError
from components.images.samples import RGB
from components.images.shards import Shards
from components.progress import track
from components.storage import StorageParams, Store
from components.tables.parts import opened, parts
from components.tables.schemas import INDEX

INDEX_NAME = "index"
BATCH = 16_384  # rows read at a time


@dataclass(frozen=True)
class Pool:
    """See above. It travels between processes: paths and a few numbers."""

    curated: Path
    storage: StorageParams
    groups: tuple[tuple[str, int], ...]  # file and row group of each stretch of the index
    starts: tuple[int, ...]  # kept rows before each of them, and in all
    digest: str  # SHA-256 (hex) over keys and content hashes, in order

    @staticmethod
    def load(curated: Path, storage: StorageParams) -> Pool:
        """Count and name what was kept in ``curated``: one pass over three columns of the index.

        Raises:
            VitrailError: a table is missing, nothing was kept, or a kept row names a shard that is not there.
        """
        files, content = parts(curated / INDEX_NAME, INDEX), hashlib.sha256()
        known: Mapping[str, object] = {}
        groups: list[tuple[str, int]] = []
        starts = [0]
        names = ["key", "stored_sha256", "shard", "status"]
        for path in files:
            with opened(path, INDEX) as part:
                for group in range(part.metadata.num_row_groups):
                    kept = _kept(part, group, names)
                    if len(kept) and not known:
                        known = Shards.load(curated).shards
                    for shard in pc.unique(kept["shard"]).to_pylist():
                        if shard not in known:
                            raise VitrailError(
                                f"{curated}: index and shards do not match: no {shard!r} in shards.json; curate again"
                            )
                    for name in ("key", "stored_sha256"):
                        content.update("\n".join([*kept[name].to_pylist(), ""]).encode())
                    groups.append((str(path), group))
                    starts.append(starts[-1] + len(kept))
        if not starts[-1]:
            raise VitrailError(f"{curated / INDEX_NAME}: no kept image; see its reasons, and curate again")
        return Pool(curated, storage, tuple(groups), tuple(starts), content.hexdigest())

    def __len__(self) -> int:
        return self.starts[-1]

    def narrowed(self, start: int, stop: int) -> Pool:
        """The same, knowing no more of the index than where rows ``start`` to ``stop`` are: to travel lightly."""
        first = int(np.searchsorted(self.starts, start, "right")) - 1
        last = int(np.searchsorted(self.starts, stop, "left"))
        return replace(self, groups=self.groups[first:last], starts=self.starts[first : last + 1])

    def store(self) -> Store:
        """The store of the shards."""
        return Shards.load(self.curated).store(self.curated, self.storage)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The ``columns`` of all rows, in order, some thousand rows at a time."""
        for (path, group), start, stop in zip(self.groups, self.starts, self.starts[1:], strict=False):
            if stop > start:
                yield _group(path, group, tuple(columns))

    def slice(self, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """The ``columns`` of rows ``start`` to ``stop``."""
        return self.take(np.arange(start, min(stop, len(self))), columns)

    def take(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """The ``columns`` of some ``rows``, in their order: for no more than fit in memory."""
        rows = np.asarray(rows, np.int64)
        number = np.searchsorted(np.asarray(self.starts), rows, "right") - 1
        order = np.argsort(number, kind="stable")
        path, place = self.groups[0]
        found = [_group(path, place, tuple(columns)).slice(0, 0)]
        for group in np.unique(number).tolist():
            mine = rows[order][number[order] == group] - self.starts[group]
            path, place = self.groups[group]
            found.append(_group(path, place, tuple(columns)).take(pa.array(mine)))
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return pa.concat_tables(found).take(pa.array(back))

    def rows_of(self, keys: Sequence[str]) -> dict[str, int]:
        """The numbers of the rows of a few ``keys``, by one pass over the index; those not there are left out."""
        wanted, found, start = pa.array(list(keys), pa.string()), {}, 0
        for table in self.batches(["key"]):
            places = np.flatnonzero(pc.is_in(table["key"], wanted).to_numpy())
            found.update({table["key"][int(place)].as_py(): start + int(place) for place in places})
            start += len(table)
        return found

    def rgb(self, row: int, store: Store | None = None) -> RGB:
        """Image ``row`` as uint8 [H, W, 3]."""
        from components.dedup.pool.extract import read_picture

        (place,) = self.take(np.array([row]), PLACE).to_pylist()
        return read_picture(store or self.store(), place)

    def write_rows(self, path: Path) -> None:
        """Write what joins need of every row, with its number ``row``, to one Parquet file at ``path``."""
        from components.storage import atomic_file

        names = [*PLACE, "width", "height", "source", "source_offset", "stored_sha256"]
        with atomic_file(path) as file:
            writer, start = None, 0
            for table in track(self.batches(names), "rows of the pool", len(self.groups), unit="groups"):
                numbered = table.append_column("row", pa.array(np.arange(start, start + len(table))))
                writer = writer or pq.ParquetWriter(file, numbered.schema, compression="zstd")
                writer.write_table(numbered)
                start += len(table)
            assert writer is not None
            writer.close()


PLACE = ("key", "shard", "offset", "length")


def _kept(part: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table:
    table = part.read_row_group(group, columns=[*dict.fromkeys([*columns, "status"])])
    return table.filter(pc.equal(table["status"], "kept")).select(list(columns))


def _group(path: str, group: int, columns: tuple[str, ...]) -> pa.Table:
    """The kept rows of one row group."""
    return _read(path, os.stat(path).st_mtime_ns, group, columns)


@lru_cache(maxsize=2)
def _read(path: str, _: int, group: int, columns: tuple[str, ...]) -> pa.Table:
    # Kept, for chunks of images ask for the same one again and again.
    with opened(Path(path), INDEX) as part:
        return _kept(part, group, columns)


def ranges(pool: Pool, at_least: int) -> list[tuple[int, int]]:
    """Row ranges of whole input shards, each of ``at_least`` rows but the last.

    Rows of a shard need not stand together: a range ends where one name follows another.
    """
    found, start, row, last = [], 0, 0, ""
    for table in pool.batches(["shard"]):
        shards = table["shard"].to_pandas().to_numpy()
        changes = row + np.flatnonzero(np.r_[shards[0] != last, shards[1:] != shards[:-1]])
        for change in changes.tolist():
            if change - start >= at_least:
                found.append((start, change))
                start = change
        row, last = row + len(table), str(shards[-1])
    return [*found, (start, len(pool))]
