"""The images of a manifest: which there are, and their bytes by exact offsets, from disk or by range from S3."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.images.tables import MANIFEST, Shards, read_table
from components.storage import LocalStore, StorageParams

OPEN_SHARDS = 64  # file handles a process keeps


class Address(NamedTuple):
    """Where an image's bytes are."""

    key: str
    shard: str
    offset: int
    length: int


class ManifestDataset:
    """The images of a manifest, by row.

    Only paths travel to worker processes; the table is read where it is first needed.

    Raises:
        VitrailError: the manifest or shards.json is missing or malformed (on first use).
    """

    def __init__(self, curated: Path, manifest: Path, storage: StorageParams) -> None:
        self.curated, self.manifest, self.storage = curated, manifest, storage
        self._forget()

    def _forget(self) -> None:
        self._table: Any = None
        self._store: Any = None
        self._handles: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"curated": self.curated, "manifest": self.manifest, "storage": self.storage}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def table(self) -> Any:
        """The manifest (``tables.MANIFEST``)."""
        if self._table is None:
            self._table = read_table(self.manifest, MANIFEST).combine_chunks()
        return self._table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def weights(self) -> npt.NDArray[np.float32]:
        """Expected draws an epoch, one a row."""
        weights: npt.NDArray[np.float32] = self.table["weight"].to_numpy()
        return weights

    def addresses(self, rows: Sequence[int]) -> list[Address]:
        """Where the bytes of ``rows`` are."""
        chosen = self.table.select(list(Address._fields)).take(list(rows))
        return [Address(*values) for values in zip(*(column.to_pylist() for column in chosen.columns), strict=True)]

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
