"""Labelled image sets with held-out images (``params/benchmarks.yaml``): the embedded elpv, and the user's own Parquet.

Images are read when asked for. The digest covers the files' bytes in their order, labels, keys and split, so scores of
the same digest can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from components.errors import VitrailError, nearest
from components.evaluation.sets.class_layouts import (
    FolderParams,
    ImageNetParams,
    TarParams,
    read_folder,
    read_hf,
    read_imagenet,
    read_tar_shards,
)
from components.evaluation.sets.copies_set import CopiesParams, load_copies
from components.evaluation.sets.dense_layouts import DENSE, DenseSetParams, load_dense
from components.evaluation.sets.hf_folder import DatasetsParams
from components.evaluation.sets.labelled_set import Benchmark, ImageColumn, ImageFiles, Images, named_picture
from components.evaluation.sets.revisited_set import load_ground_truth
from components.evaluation.sets.robustness_set import RobustnessParams, read_robustness
from components.evaluation.sets.video_set import DavisParams, load_davis
from components.evaluation.statistics.selection import divide
from components.input_paths import InputPath, PluginName
from components.params import Name, Seed, Strict, load_params
from components.plugins import load_plugin

__all__ = ["Benchmark", "BenchmarksFile", "Images", "load_benchmark", "load_named"]


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
    split: str | None = "split"  # column that says which side a row is on; null: drawn by `seed`
    test: str = "test"  # its value for held-out rows
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of each class, or of the groups, where `split` is null
    seed: Seed = 0  # of that draw
    key: str | None = None  # column that names a row; null: its number
    group: str | None = None  # column of what belongs together (scene, patient); a probe never divides a group


class OwnBenchmarkParams(Strict):
    """Labelled images that a reader of the user's own finds."""

    kind: Literal["plugin"]
    call: PluginName  # package.module:reader; it takes the benchmark's name and this section, returns a Benchmark
    settings: dict[str, Any] = {}  # whatever the reader wants to know


class RevisitedParams(Strict):
    """Revisited Oxford or Paris (Radenovic et al. 2018): retrieval by the official ground truth."""

    kind: Literal["revisited"]
    gnd: InputPath  # the ground truth, JSON or pickle
    images: InputPath  # folder of its pictures


class QueryParams(Strict):
    """Images without labels or held-out side: queries of retrieval (the paper's ImageNet-22k, GLDv2), nothing else."""

    kind: Literal["queries"]
    path: InputPath
    image: str = "image"  # as in :class:`ParquetParams`
    key: str | None = None


FilesParams = ElpvParams | ParquetParams | FolderParams | ImageNetParams | TarParams | DatasetsParams
ClassParams = FilesParams | OwnBenchmarkParams
AnyParams = ClassParams | DavisParams | RevisitedParams | CopiesParams | QueryParams | RobustnessParams | DenseSetParams
BenchmarkParams = Annotated[AnyParams, Field(discriminator="kind")]
Labels = npt.NDArray[np.int64]
HeldOutMask = npt.NDArray[np.bool_]


class BenchmarksFile(Strict):
    """``params/benchmarks.yaml``: a name for each benchmark, at the top level of the file."""

    benchmarks: dict[Name, BenchmarkParams]

    @property
    def scored(self) -> dict[str, ClassParams]:
        """Those with a label an image and held-out images."""
        return {name: one for name, one in self.benchmarks.items() if isinstance(one, ClassParams)}

    @property
    def dense(self) -> dict[str, DenseSetParams]:
        """Those with a class or a depth at every pixel."""
        return {name: one for name, one in self.benchmarks.items() if isinstance(one, DENSE)}

    @property
    def revisited(self) -> dict[str, RevisitedParams]:
        """Those of retrieval by a ground truth of their own."""
        return {name: one for name, one in self.benchmarks.items() if isinstance(one, RevisitedParams)}

    @property
    def copies(self) -> dict[str, CopiesParams]:
        """Those of copy detection by a truth of their own."""
        return {name: one for name, one in self.benchmarks.items() if isinstance(one, CopiesParams)}

    @property
    def videos(self) -> dict[str, DavisParams]:
        """Those with masks in the frames of videos."""
        return {name: one for name, one in self.benchmarks.items() if isinstance(one, DavisParams)}

    @property
    def robustness(self) -> dict[str, RobustnessParams]:
        """Those that test the classifiers of another benchmark."""
        return {name: one for name, one in self.benchmarks.items() if isinstance(one, RobustnessParams)}

    @model_validator(mode="after")
    def _robustness_of_what_is_there(self) -> BenchmarksFile:
        for name, one in self.robustness.items():
            if one.of not in self.scored:
                raise ValueError(
                    f"{name}.of: {one.of!r} is no benchmark with classes{nearest(one.of, list(self.scored))}"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _from_top_level(cls, content: Any) -> Any:
        return content if isinstance(content, dict) and set(content) == {"benchmarks"} else {"benchmarks": content}


def load_benchmark(name: str, params: AnyParams) -> Benchmark:
    """The benchmark that ``params`` describe, its images unread; one of masks, depths or robustness has no label.

    Raises:
        VitrailError: the package or file is missing, or a column is not as described.
    """
    readers: dict[str, Callable[[str, Any], Benchmark]] = {
        "elpv": _elpv,
        "parquet": _parquet,
        "folder": read_folder,
        "imagenet": read_imagenet,
        "tar": read_tar_shards,
        "datasets": read_hf,
        "plugin": _own,
        "queries": _queries,
        "revisited": _revisited,
        "robustness": read_robustness,
        "copies": lambda name, given: load_copies(name, given).pictures,
        "davis": lambda name, given: load_davis(name, given).pictures,
    }
    if isinstance(params, DENSE):
        return load_dense(name, params).pictures
    return readers[params.kind](name, params)


def load_named(path: Path, name: str) -> Benchmark:
    """The benchmark ``name``, with labels, of the file ``path`` (``params/benchmarks.yaml``)."""
    known = load_params(path, BenchmarksFile).scored
    if name not in known:
        raise VitrailError(f"{path}: no benchmark {name!r}; there are {', '.join(known)}{nearest(name, list(known))}")
    return load_benchmark(name, known[name])


def _own(name: str, params: OwnBenchmarkParams) -> Benchmark:
    found = load_plugin(params.call, f"benchmark {name}")(name, params)
    if not isinstance(found, Benchmark):
        raise VitrailError(f"benchmark {name}: {params.call} must return a Benchmark")
    return found


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
        ImageFiles([folder / path for path, _, _ in rows]),
        {"type": np.array([kinds.index(kind) for _, _, kind in rows], np.int64), "defect": defect},
        {"type": kinds, "defect": ["0", "1/3", "2/3", "1"]},
        held_out,
    )


def _parquet(name: str, params: ParquetParams) -> Benchmark:
    where = f"benchmark {name}: {params.path}"
    others = [name for name in (params.split, params.key, params.group) if name]
    columns = [params.image, *params.labels, *others]
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
        ImageColumn(table[params.image], f"{where}, column {params.image!r}"),
        labels,
        class_names,
        _held_out(params, table, where, next(iter(labels.values())), groups),
        groups=groups,
    )


def _held_out(params: ParquetParams, table: Any, where: str, labels: Labels, groups: Labels | None) -> HeldOutMask:
    """Which rows are held out: as the split's column says; without one a share of each class, or of the groups."""
    if params.split is None:
        return divide(labels, params.held_out, params.seed, groups)
    return np.array([value == params.test for value in _filled(table, params.split, where)], bool)


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
        ImageColumn(table[params.image], f"{where}, column {params.image!r}"),
        {},
        {},
        np.zeros(len(table), bool),
        queries_only=True,
    )


def _revisited(name: str, params: RevisitedParams) -> Benchmark:
    truth = load_ground_truth(Path(params.gnd))
    names = list(dict.fromkeys([*truth.queries, *truth.database]))
    files = ImageFiles([named_picture(Path(params.images), one) for one in names])
    keys = [f"{name}/{one}" for one in names]
    return Benchmark(name, keys, files, {}, {}, np.ones(len(names), bool), held_out_only=True)


def _table(path: str, columns: list[str], where: str) -> Any:
    import pyarrow.parquet as pq

    from components.tables.schemas import PARQUET_FAULTS

    try:
        known = pq.read_schema(path).names
        for column in columns:
            if column not in known:
                raise VitrailError(f"{where}: no column {column!r}{nearest(column, known)}")
        table = pq.read_table(path, columns=columns, memory_map=True)
    except FileNotFoundError:
        raise VitrailError(f"{where}: no such file; check its path in params/benchmarks.yaml") from None
    except PARQUET_FAULTS as fault:
        raise VitrailError(f"{where}: not a readable Parquet file ({fault})") from None
    if not len(table):
        raise VitrailError(f"{where}: no rows")
    return table


def _keys(name: str, table: Any, key: str | None) -> list[str]:
    rows = table[key].to_pylist() if key else [f"{row:05d}" for row in range(len(table))]
    return [f"{name}/{row}" for row in rows]
