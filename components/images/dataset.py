"""The images of a manifest: which there are, and their bytes by exact offsets, from disk or by range from S3."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.errors import VitrailError
from components.images.shards import Shards
from components.storage import LocalStore, StorageParams
from components.tables.parts import iter_batches, opened, part_rows, parts, read_table
from components.tables.schemas import MANIFEST

OPEN_SHARDS = 64  # file handles a process keeps
RUN = 1 << 10  # rows kept together: the sampler's runs
RUNS = 1 << 13  # runs kept in memory, about 100 bytes a row: two of the sampler's blocks


class Address(NamedTuple):
    """Where an image's bytes are."""

    key: str
    shard: str
    offset: int
    length: int


class ManifestDataset:
    """The images of a manifest, by row.

    Only paths travel to worker processes. Parts of the manifest are read where their rows are asked for, and at most
    :data:`RUNS` runs of :data:`RUN` rows are kept: a manifest of up to eight million rows is read once, a longer one as
    the sampler's blocks come to it.

    Raises:
        VitrailError: the manifest or shards.json is missing or malformed (on first use).
    """

    def __init__(self, curated: Path, manifest: Path, storage: StorageParams) -> None:
        self.curated, self.manifest, self.storage = curated, manifest, storage
        self._forget()

    def _forget(self) -> None:
        self._parts: list[Path] = []
        self._ends: npt.NDArray[np.int64] = np.zeros(0, np.int64)  # of each part, in rows of the manifest
        self._whole: Any = None  # of a manifest that is short enough
        self._runs: OrderedDict[int, Any] = OrderedDict()
        self._store: Any = None
        self._handles: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"curated": self.curated, "manifest": self.manifest, "storage": self.storage}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _open(self) -> None:
        if not self._parts:
            self._parts = parts(self.manifest, MANIFEST)
            self._ends = np.cumsum(part_rows(self.manifest, MANIFEST))

    def __len__(self) -> int:
        self._open()
        return int(self._ends[-1])

    def weights(self) -> npt.NDArray[np.float32] | None:
        """Expected draws an epoch, one a row; None where each is 1, which takes no memory."""
        batches = (batch["weight"] for batch in iter_batches(self.manifest, MANIFEST, ["weight"]))
        if all(pc.all(pc.equal(weights, 1)).as_py() is not False for weights in batches):
            return None
        columns = [batch["weight"].to_numpy(False) for batch in iter_batches(self.manifest, MANIFEST, ["weight"])]
        return np.concatenate(columns)

    def addresses(self, rows: Sequence[int]) -> list[Address]:
        """Where the bytes of ``rows`` are."""
        if len(self) <= RUN * RUNS:
            if self._whole is None:
                self._whole = read_table(self.manifest, MANIFEST, columns=Address._fields).combine_chunks()
            chosen = self._whole.take(list(rows))
            return [Address(*values) for values in zip(*(column.to_pylist() for column in chosen.columns), strict=True)]
        found = []
        for row in rows:
            run = self._run(row // RUN)
            place = row % RUN
            found.append(Address(*(column[place].as_py() for column in run)))
        return found

    def _run(self, number: int) -> Any:
        """The columns of run ``number``, as arrays of up to :data:`RUN` rows."""
        if number in self._runs:
            self._runs.move_to_end(number)
            return self._runs[number]
        self._open()
        first, last = number * RUN, min((number + 1) * RUN, int(self._ends[-1]))
        pieces = []
        for part in range(int(np.searchsorted(self._ends, first, "right")), len(self._parts)):
            start = int(self._ends[part - 1]) if part else 0
            if start >= last:
                break
            pieces.append(self._rows(self._parts[part], max(first - start, 0), last - start))
        whole = pa.concat_tables(pieces).combine_chunks()
        self._runs[number] = [whole[name].chunk(0) for name in Address._fields]
        if len(self._runs) > RUNS:
            self._runs.popitem(last=False)
        return self._runs[number]

    def _rows(self, path: Path, first: int, last: int) -> pa.Table:
        """The rows ``first`` to ``last`` of one part, a copy of no more than these."""
        with opened(path, MANIFEST) as part:
            groups: list[int] = []
            at = start = 0
            for group in range(part.metadata.num_row_groups):
                count = part.metadata.row_group(group).num_rows
                if at < last and at + count > first:
                    start = at if not groups else start
                    groups.append(group)
                at += count
            table = part.read_row_groups(groups, columns=list(Address._fields))
        wanted = table.select(list(Address._fields)).slice(first - start, last - first)
        return wanted.take(pa.array(np.arange(len(wanted))))

    def read(self, address: Address) -> bytes:
        """The bytes at ``address``.

        Raises:
            VitrailError: the shard is not there or the store cannot be reached.
        """
        if self._store is None:
            self._store = Shards.load(self.curated).store(self.curated, self.storage)
        if isinstance(self._store, LocalStore):
            return os.pread(self._handle(address.shard), address.length, address.offset)
        data: bytes = self._store.read(address.shard, address.offset, address.length)
        return data

    def _handle(self, shard: str) -> int:
        handle = self._handles.get(shard)
        if handle is None:
            path = Path(self._store.root) / shard
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                raise VitrailError(f"{path}: the shard is not there; run the curate stage, or dvc pull") from None
            self._handles[shard] = handle
            if len(self._handles) > OPEN_SHARDS:
                os.close(self._handles.popitem(last=False)[1])
        else:
            self._handles.move_to_end(shard)
        return handle

    def close(self) -> None:
        """Close the shards."""
        while self._handles:
            os.close(self._handles.popitem()[1])
