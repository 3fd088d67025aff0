"""A set of labelled images with held-out ones: what every layout of files is read into.

Images are read when asked for. The digest covers the files' bytes in their order, labels, keys and split, so scores of
the same digest can be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.images.decode import RGB, DecodeError, DecodeLimits, decode
from components.params import fingerprint


class Images(Protocol):
    """A lazy sequence of pictures."""

    def __len__(self) -> int: ...

    def bytes(self, row: int) -> bytes:
        """The encoded file of picture ``row``."""

    def rgb(self, row: int) -> RGB:
        """Picture ``row`` as uint8 [H, W, 3]."""


@runtime_checkable
class Divisible(Images, Protocol):
    """Images of which parts can travel to other processes; those of a plugin may be none."""

    def part(self, start: int, stop: int) -> Images:
        """Pictures ``start`` to ``stop``, picklable: where they lie, or their encoded files; never pixels."""


@dataclass(frozen=True)
class Benchmark:
    """A labelled set of n images; or one of queries only: no labels, none held out; or one that is all held out."""

    name: str
    keys: list[str]  # n of "name/row"
    images: Images
    labels: dict[str, npt.NDArray[np.int64]]  # task -> [n]
    class_names: dict[str, list[str]]  # task -> name of each label
    test: npt.NDArray[np.bool_]  # [n]: held out
    groups: npt.NDArray[np.int64] | None = None  # [n]: number of the group
    queries_only: bool = False
    held_out_only: bool = False  # no training side: its images test what another benchmark's classifier keeps

    def __post_init__(self) -> None:
        if not (self.queries_only or self.held_out_only) and (not self.test.any() or self.test.all()):
            raise VitrailError(
                f"benchmark {self.name}: {int(self.test.sum())} of {len(self.keys)} images are held out; "
                "both sides need images: check its split in params/benchmarks.yaml"
            )

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 (hex) of each image's file, n of them. The first access reads every image."""
        return [hashlib.sha256(self.images.bytes(row)).hexdigest() for row in range(len(self.keys))]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over everything a score depends on. The first access reads every image."""
        content = {
            "name": self.name,
            "keys": self.keys,
            "images": self.digests,
            "labels": {task: values.tolist() for task, values in self.labels.items()},
            "class_names": self.class_names,
            "test": self.test.tolist(),
            "groups": None if self.groups is None else self.groups.tolist(),
        }
        return fingerprint(content)

    def kept_out(self, against: Literal["test", "all"]) -> npt.NDArray[np.bool_]:
        """Which images [n] no training image may copy: the held-out ones, or all; of mere queries none."""
        return self.test if against == "test" or self.queries_only else np.ones_like(self.test)


class ImageFiles:
    """Images in files of their own."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def bytes(self, row: int) -> bytes:
        return self._paths[row].read_bytes()

    def rgb(self, row: int) -> RGB:
        return decoded(self.bytes(row), str(self._paths[row]))

    def part(self, start: int, stop: int) -> ImageFiles:
        """The files ``start`` to ``stop``."""
        return ImageFiles(self._paths[start:stop])


class ImageColumn:
    """Images in an Arrow column, decoded one by one."""

    def __init__(self, column: Any, where: str, first: int = 0) -> None:
        self._column, self._where, self._first = column, where, first  # first: the row that messages begin to count at

    def __len__(self) -> int:
        return len(self._column)

    def bytes(self, row: int) -> bytes:
        value = self._column[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise VitrailError(f"{self._where}: row {self._first + row} holds no image bytes")
        return data

    def rgb(self, row: int) -> RGB:
        return decoded(self.bytes(row), f"{self._where}, row {self._first + row}")

    def part(self, start: int, stop: int) -> ImageColumn:
        """The rows ``start`` to ``stop`` alone, copied: a slice would take the whole column along."""
        import pyarrow as pa

        found = self._column.slice(start, stop - start)
        chunks = found.chunks if isinstance(found, pa.ChunkedArray) else [found]
        # Chunk by chunk: taken from all of them at once, Arrow joins the column first, and more than 2 GB cannot be.
        copies = [chunk.take(pa.array(range(len(chunk)), pa.int64())) for chunk in chunks]
        return ImageColumn(pa.chunked_array(copies, found.type), self._where, self._first + start)

    def with_more(self, others: ImageColumn) -> ImageColumn:
        """These, then ``others``; of two types both as bytes."""
        import pyarrow as pa

        parts = [
            column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
            for column in (self._column, others._column)
        ]
        if parts[0].type != parts[1].type:
            raise VitrailError(f"{others._where}: holds {parts[1].type}, and {self._where} {parts[0].type}")
        return ImageColumn(pa.chunked_array([chunk for part in parts for chunk in part.chunks]), self._where)


def named_picture(folder: Path, name: str) -> Path:
    """The file of ``folder`` that a list names with or without its ending.

    Raises:
        VitrailError: there is none.
    """
    for ending in ("", ".jpg", ".jpeg", ".png"):
        if (folder / f"{name}{ending}").is_file():
            return folder / f"{name}{ending}"
    raise VitrailError(f"{folder}: no picture {name} (.jpg, .jpeg or .png), which the ground truth names")


def held_out_by_seed(count: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which of ``count`` images are held out where a data set does not say: a share of at least one, drawn by seed."""
    test = np.zeros(count, bool)
    test[np.random.default_rng([seed, 0x5B117]).permutation(count)[: max(1, round(share * count))]] = True
    return test


def decoded(data: bytes, where: str) -> RGB:
    """The picture in ``data``.

    Raises:
        VitrailError: it cannot be decoded; the message begins with ``where``.
    """
    try:
        return decode(data, DecodeLimits())
    except DecodeError as fault:
        raise VitrailError(f"{where}: not a readable image ({fault}); take it out of the benchmark") from None
