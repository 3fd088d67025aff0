"""Features of images kept on disk, so that no network sees an image twice.

A row is found by the SHA-256 of the image's file, in a folder of its own for each network and way of seeing: weights,
architecture, normalisation, side and crop. So the benchmark stage and the commands on models share one store, whatever
the sets, orders and names that they meet an image in. A *segment* is a folder of the rows of one run; it is never
changed, so several processes may write and read at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from components.learning.export import weights_digest
from components.learning.vit import VisionTransformer
from components.params import fingerprint
from components.storage import atomic_dir

Rows = npt.NDArray[np.float32]
Digests = npt.NDArray[np.bytes_]
CLS, PATCHES = "cls", "patches"  # class token of the last block, mean of its patch tokens; [D] each
_KEYS = "digests"
_FAULTS = (OSError, ValueError, EOFError)


@dataclass(frozen=True)
class Preprocessing:
    """How a network sees an image."""

    mean: tuple[float, ...]  # of the normalisation, RGB in 0 ... 1
    std: tuple[float, ...]
    size: int  # px of the square
    crop: float = 1.0  # share of the shorter side that the centre square keeps


@dataclass
class FeatureStore:
    """The kept features of one network that sees images in one way."""

    folder: Path
    _segments: dict[Path, Digests] = field(default_factory=dict)  # digests rise, each once

    def read(self, digests: Sequence[str], parts: Sequence[str]) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """Kept rows [n, D] of the images of ``digests`` (SHA-256, hex), ``parts`` side by side, and which are kept [n].

        Rows that are not kept are undefined; where none is, D is 0. A segment that cannot be read is passed over.
        """
        wanted = np.array(digests, "S64")
        kept = np.ones(len(wanted), bool)
        columns: list[Rows] = []
        for part in parts:
            found, rows = np.zeros(len(wanted), bool), np.empty((len(wanted), 0), np.float32)
            for here, at, values in self._found(wanted, part):
                if not rows.shape[1]:
                    rows = np.empty((len(wanted), values.shape[1]), np.float32)
                rows[here] = values[at]
                found |= here
            kept &= found
            columns.append(rows)
        if not kept.any():
            return np.empty((len(wanted), 0), np.float32), kept
        return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1), kept

    def keep(self, digests: Sequence[str], parts: Mapping[str, Rows]) -> None:
        """Keep rows [n, D] of ``parts``; an image that has them already, or is not finite, is left out."""
        if not digests or not parts:
            return
        wanted = np.array(digests, "S64")
        kept = np.ones(len(wanted), bool)
        for part in parts:
            found = np.zeros(len(wanted), bool)
            for here, _, _ in self._found(wanted, part):
                found |= here
            kept &= found
        for rows in parts.values():
            kept |= ~np.isfinite(rows).all(axis=1)
        names, first = np.unique(wanted, return_index=True)
        new = ~kept[first]
        if not new.any():
            return
        names, first = names[new], first[new]
        with atomic_dir(self.folder / f"segment-{uuid4().hex}") as aside:
            for part, rows in parts.items():
                np.save(aside / f"{part}.npy", rows[first], allow_pickle=False)
            np.save(aside / f"{_KEYS}.npy", names, allow_pickle=False)

    def _found(self, wanted: Digests, part: str) -> Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], Rows]]:
        """Of each segment: which of ``wanted`` [n] it has and none before had, where, and all its rows, unread."""
        found = np.zeros(len(wanted), bool)
        for segment, known in self._known().items():
            at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            here = (known[at] == wanted) & ~found
            if here.any() and (values := _rows(segment / f"{part}.npy", len(known))) is not None:
                found |= here
                yield here, at[here], values

    def _known(self) -> dict[Path, Digests]:
        """Digests of every segment that is there by now."""
        there = sorted(self.folder.glob("segment-*"))
        for gone in self._segments.keys() - set(there):
            del self._segments[gone]
        for segment in there:
            if segment not in self._segments:
                try:
                    known: Digests = np.load(segment / f"{_KEYS}.npy", allow_pickle=False)
                except _FAULTS:
                    continue
                if known.ndim == 1 and len(known) and known.dtype == np.dtype("S64"):
                    self._segments[segment] = known
        return self._segments


def store_of(folder: Path, model: VisionTransformer, seen: Preprocessing) -> FeatureStore:
    """The store below ``folder`` of what ``model`` makes of images seen so."""
    vit = model.config.model_dump(mode="json", exclude={"drop_path"})  # which is of training alone
    return FeatureStore(folder / fingerprint([weights_digest(model), vit, asdict(seen)])[:32])


def _rows(path: Path, count: int) -> Rows | None:
    try:
        rows: Rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except _FAULTS:
        return None
    return rows if rows.ndim == 2 and len(rows) == count and rows.dtype == np.float32 else None
