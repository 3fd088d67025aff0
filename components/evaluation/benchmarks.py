"""Labelled image sets with held-out images (``params/benchmarks.yaml``): the embedded elpv, and the user's own Parquet.

Images are read when asked for. The digest covers the files' bytes in their order, labels, keys and split, so scores of
the same digest can be compared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from components.errors import VitrailError, nearest
from components.images.decode import RGB, DecodeError, DecodeLimits, decode
from components.input_paths import InputPath
from components.params import Name, Seed, Strict, fingerprint, load_params


class ElpvParams(Strict):
    """2,624 photographs of solar cells, 300 x 300 px, from the ``elpv_dataset`` package (Buerhop-Lutz et al. 2018)."""

    kind: Literal["elpv"]
    test: int = Field(624, ge=1, le=2623)  # held-out images
    seed: Seed = 0  # of the permutation whose first `test` images are held out


class ParquetParams(Strict):
    """The user's own labelled images: one row an image."""

    kind: Literal["parquet"]
    path: InputPath
    image: str = "image"  # column with encoded images: bytes, or Hugging Face's {"bytes", "path"}
    labels: list[str] = Field(min_length=1)  # columns with a class each: text or whole numbers
    split: str = "split"  # column that says which side a row is on
    test: str = "test"  # its value for held-out rows
    key: str | None = None  # column that names a row; null: its number
    group: str | None = None  # column of what belongs together (scene, patient); a probe never divides a group


class QueryParams(Strict):
    """Images without labels or held-out side: queries of retrieval (the paper's ImageNet-22k, GLDv2), nothing else."""

    kind: Literal["queries"]
    path: InputPath
    image: str = "image"  # as in :class:`ParquetParams`
    key: str | None = None


BenchmarkParams = Annotated[ElpvParams | ParquetParams | QueryParams, Field(discriminator="kind")]


class BenchmarksFile(Strict):
    """``params/benchmarks.yaml``: a name for each benchmark, at the top level of the file."""

    benchmarks: dict[Name, BenchmarkParams]

    @property
    def scored(self) -> dict[str, ElpvParams | ParquetParams]:
        """Those with labels and held-out images."""
        return {name: one for name, one in self.benchmarks.items() if not isinstance(one, QueryParams)}

    @model_validator(mode="before")
    @classmethod
    def _from_top_level(cls, content: Any) -> Any:
        return content if isinstance(content, dict) and set(content) == {"benchmarks"} else {"benchmarks": content}


class Images(Protocol):
    """A lazy sequence of pictures."""

    def __len__(self) -> int: ...

    def bytes(self, row: int) -> bytes:
        """The encoded file of picture ``row``."""

    def rgb(self, row: int) -> RGB:
        """Picture ``row`` as uint8 [H, W, 3]."""


@dataclass(frozen=True)
class Benchmark:
    """A labelled set of n images, or one of queries only: no labels, none held out."""

    name: str
    keys: list[str]  # n of "name/row"
    images: Images
    labels: dict[str, npt.NDArray[np.int64]]  # task -> [n]
    class_names: dict[str, list[str]]  # task -> name of each label
    test: npt.NDArray[np.bool_]  # [n]: held out
    groups: npt.NDArray[np.int64] | None = None  # [n]: number of the group
    queries_only: bool = False

    def __post_init__(self) -> None:
        if not self.queries_only and (not self.test.any() or self.test.all()):
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


def load_benchmark(name: str, params: ElpvParams | ParquetParams | QueryParams) -> Benchmark:
    """The benchmark that ``params`` describe, its images unread.

    Raises:
        VitrailError: the package or file is missing, or a column is not as described.
    """
    if isinstance(params, QueryParams):
        return _queries(name, params)
    return _elpv(name, params) if isinstance(params, ElpvParams) else _parquet(name, params)


def load_named(path: Path, name: str) -> Benchmark:
    """The benchmark ``name``, with labels, of the file ``path`` (``params/benchmarks.yaml``)."""
    known = load_params(path, BenchmarksFile).scored
    if name not in known:
        raise VitrailError(f"{path}: no benchmark {name!r}; there are {', '.join(known)}{nearest(name, list(known))}")
    return load_benchmark(name, known[name])


class _Files:
    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def bytes(self, row: int) -> bytes:
        return self._paths[row].read_bytes()

    def rgb(self, row: int) -> RGB:
        return _decode(self.bytes(row), str(self._paths[row]))


class _Column:
    """Images in an Arrow column, decoded one by one."""

    def __init__(self, column: Any, where: str) -> None:
        self._column, self._where = column, where

    def __len__(self) -> int:
        return len(self._column)

    def bytes(self, row: int) -> bytes:
        value = self._column[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise VitrailError(f"{self._where}: row {row} holds no image bytes")
        return data

    def rgb(self, row: int) -> RGB:
        return _decode(self.bytes(row), f"{self._where}, row {row}")


def _decode(data: bytes, where: str) -> RGB:
    try:
        return decode(data, DecodeLimits())
    except DecodeError as fault:
        raise VitrailError(f"{where}: not a readable image ({fault}); take it out of the benchmark") from None


def _elpv(name: str, params: ElpvParams) -> Benchmark:
    import csv
    import importlib.util

    found = importlib.util.find_spec("elpv_dataset")
    if found is None or found.origin is None:
        raise VitrailError(f"benchmark {name}: the package elpv-dataset is not installed; run make install")
    folder = Path(found.origin).parent / "data"
    with open(folder / "labels.csv", newline="") as file:
        rows = [line.split() for (line,) in csv.reader(file) if line.strip()]
    # Four levels: 0, 1/3, 2/3 and 1 is the share of experts that called the cell defective.
    defect = np.array([round(3 * float(probability)) for _, probability, _ in rows], np.int64)
    kinds = ["mono", "poly"]
    held_out = np.zeros(len(rows), bool)
    held_out[np.random.default_rng(params.seed).permutation(len(rows))[: params.test]] = True
    return Benchmark(
        name,
        [f"{name}/{row:05d}" for row in range(len(rows))],
        _Files([folder / path for path, _, _ in rows]),
        {"type": np.array([kinds.index(kind) for _, _, kind in rows], np.int64), "defect": defect},
        {"type": kinds, "defect": ["0", "1/3", "2/3", "1"]},
        held_out,
    )


def _parquet(name: str, params: ParquetParams) -> Benchmark:
    where = f"benchmark {name}: {params.path}"
    columns = [params.image, params.split, *params.labels, *(name for name in (params.key, params.group) if name)]
    table = _table(params.path, columns, where)
    labels, class_names = {}, {}
    for column in params.labels:
        values = _filled(table, column, where)
        names = sorted(set(values))
        numbers = {value: number for number, value in enumerate(names)}
        task = task_name(column)
        if task in labels:
            raise VitrailError(f"{where}: the label columns {params.labels} are one task, {task!r}; rename one")
        labels[task] = np.array([numbers[value] for value in values], np.int64)
        class_names[task] = [str(value) for value in names]
    groups = None
    if params.group:
        found = _filled(table, params.group, where)
        numbers = {value: number for number, value in enumerate(dict.fromkeys(found))}
        groups = np.array([numbers[value] for value in found], np.int64)
    return Benchmark(
        name,
        _keys(name, table, params.key),
        _Column(table[params.image], f"{where}, column {params.image!r}"),
        labels,
        class_names,
        np.array([value == params.test for value in _filled(table, params.split, where)], bool),
        groups=groups,
    )


def _filled(table: Any, column: str, where: str) -> list[Any]:
    """The values of ``column``; None and NaN, which tables of numbers hold for None, are an error, never a value."""
    values: list[Any] = table[column].to_pylist()
    for row, value in enumerate(values):
        if value is None or value != value:
            raise VitrailError(f"{where}: row {row} has no {column!r}; fill it in or take the row out")
    return values


def task_name(column: str) -> str:
    """The task that a label column is scored as: its name, with ``_`` for what no metric of MLflow may be named by."""
    return re.sub(r"[^\w .-]", "_", column.strip()).strip(" .")[:60] or "label"


def _queries(name: str, params: QueryParams) -> Benchmark:
    where = f"benchmark {name}: {params.path}"
    table = _table(params.path, [params.image, *([params.key] if params.key else [])], where)
    return Benchmark(
        name,
        _keys(name, table, params.key),
        _Column(table[params.image], f"{where}, column {params.image!r}"),
        {},
        {},
        np.zeros(len(table), bool),
        queries_only=True,
    )


def _table(path: str, columns: list[str], where: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        known = pq.read_schema(path).names
        for column in columns:
            if column not in known:
                raise VitrailError(f"{where}: no column {column!r}{nearest(column, known)}")
        table = pq.read_table(path, columns=columns, memory_map=True)
    except FileNotFoundError:
        raise VitrailError(f"{where}: no such file; check its path in params/benchmarks.yaml") from None
    except pa.ArrowInvalid as fault:
        raise VitrailError(f"{where}: not a readable Parquet file ({fault})") from None
    if not len(table):
        raise VitrailError(f"{where}: no rows")
    return table


def _keys(name: str, table: Any, key: str | None) -> list[str]:
    rows = table[key].to_pylist() if key else [f"{row:05d}" for row in range(len(table))]
    return [f"{name}/{row}" for row in rows]
