"""Features of many images as a table or as arrays: part by part, resumable, over processes, GPUs or Ray."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa

from components.errors import VitrailError
from components.executor import ExecutorParams, map_shards
from components.params import fingerprint, results
from components.progress import Progress
from components.release.use.features import FeatureSpec, ImageFeatures, embed
from components.release.use.images import Places, SourcePart, digest_of, parts_of, read_part
from components.release.use.kept_features import embed_kept
from components.release.weights.fetch import pinned
from components.release.weights.load import LoadedModel, load_model, weights_digests, worker_device
from components.release.weights.outputs import check_replaceable
from components.storage import StorageParams, atomic_dir
from components.tables.parts import assemble, part_name, write_part
from components.tables.schemas import declared

FACTS = "features.json"
_KEYS = pa.schema([("key", pa.string()), ("error", pa.string())])  # of the table beside arrays
_DIFFER = "grids differ between images; write --format parquet, or give one --size"


@dataclass(frozen=True)
class EmbedJob:
    """What a worker needs beside its part; small, for it travels between processes."""

    model: str  # by value: see :func:`load_model`
    device: str  # "cpu", "cuda" (a GPU for each process), "cuda:N", or "auto": what is there where it runs
    spec: FeatureSpec
    storage: StorageParams
    work: Path  # folder of finished parts
    kept: Path | None = None  # of the feature store


@dataclass(frozen=True)
class EmbedParams:
    """How the work is spread and where its result goes."""

    spec: FeatureSpec = field(default_factory=FeatureSpec)
    places: Places = field(default_factory=Places)
    executor: ExecutorParams = field(default_factory=lambda: ExecutorParams(kind="pool"))
    device: str = "auto"  # auto: GPUs where there are some
    form: Literal["parquet", "npy"] = "parquet"
    part_rows: int = 0  # images a part; 0: 4096, or 512 with patches
    kept: Path | None = None  # folder of the feature store, which the benchmark stage may share; None: none


def features_schema(spec: FeatureSpec) -> pa.Schema:
    """Of the table that :func:`embed_all` writes; the features that were not asked for have no column.

    Lists of no fixed size: Parquet files with nulls in fixed-size lists cannot be read back by pyarrow.
    """
    fields: list[tuple[str, pa.DataType]] = [
        ("key", pa.string()),  # name below the folder, in the tar, or of the table's row
        ("error", pa.string()),  # why this image has no features; "" when it has
        ("height", pa.int32()),  # px of the image as shown
        ("width", pa.int32()),
        ("rows", pa.int32()),  # of the grid of patches
        ("columns", pa.int32()),
    ]
    if "cls" in spec.kinds:
        fields.append(("cls", pa.list_(pa.float32())))  # D numbers; null where there is an error
    if "mean" in spec.kinds:
        fields.append(("mean", pa.list_(pa.float32())))
    if "patches" in spec.kinds:
        fields.append(("patches", pa.list_(pa.float16())))  # rows * columns * dim numbers, row by row
    return declared("features", 1, "embed", fields)


def embed_all(model: str, images: str, out: Path, params: EmbedParams) -> dict[str, Any]:
    """Write the features of all ``images`` to the folder ``out`` and return what ``features.json`` there says.

    Parquet: ``part-00000-of-....parquet`` under :func:`features_schema`. npy: one array a kind (``cls.npy`` [N, D],
    ``patches.npy`` [N, rows, columns, D] fp16; NaN where there is an error) and ``keys.parquet`` (key, error), row for
    row. Finished parts are kept beside ``out`` until all are done: the same command carries on.

    Raises:
        VitrailError: model or images are not there, sizes do not fit, or ``npy`` is asked for grids that differ.
    """
    check_replaceable(out, FACTS)
    model = str(pinned(model))
    loaded = _model(model, "cpu")
    params.spec.side(loaded)
    card, spec = loaded.card, params.spec
    parts = parts_of(images, params.part_rows or (512 if "patches" in spec.kinds else 4096), params.places)
    weights = weights_digests(model)
    mark = fingerprint(card.vit, [card.mean, card.std, card.image_size], weights, results(spec), digest_of(parts))
    work = out.with_name(f".{out.name}.work") / mark[:16]
    work.mkdir(parents=True, exist_ok=True)
    job = EmbedJob(str(model), params.device, spec, params.places.storage, work, params.kept)
    files = [work / part_name(part.number, len(parts)) for part in parts]
    waiting = [part for part, file in zip(parts, files, strict=True) if not file.exists()]
    total = sum(map(len, parts))
    progress = Progress("embed", total, unit="images", start=total - sum(map(len, waiting)))
    task = partial(_embed_part, job, len(parts))
    for part, _ in zip(waiting, map_shards(task, waiting, params.executor), strict=True):
        progress.advance(len(part))
    progress.close()
    errors = sum(_errors(file) for file in files)
    facts = {
        "model": model, "preset": card.preset, "weights": weights, "images": images, "rows": total, "errors": errors,
        "spec": spec.model_dump(mode="json"), "dim": card.vit.embed_dim,
    }  # fmt: skip
    schema = features_schema(spec)
    with atomic_dir(out) as folder:
        if params.form == "npy":
            _write_arrays(files, folder, total, spec)
        else:
            assemble(folder, files, schema)
        (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(work.parent, ignore_errors=True)
    return facts


def embed_one(model: str, image: Path, spec: FeatureSpec, device: str = "auto") -> dict[str, Any]:
    """The features of one image file as plain numbers, for JSON.

    Raises:
        VitrailError: the image cannot be used.
    """
    [row] = embed(_model(str(pinned(model)), device), [(str(image), image)], spec)
    if row.error:
        raise VitrailError(f"{image}: {row.error}")
    facts: dict[str, Any] = {"key": row.key, "height": row.height, "width": row.width, "grid": list(row.grid)}
    arrays = {"cls": row.cls, "mean": row.mean, "patches": row.patches}
    return facts | {name: values.tolist() for name, values in arrays.items() if values is not None}


@lru_cache(maxsize=8)
def _model(source: str, device: str) -> LoadedModel:
    return load_model(source, device, with_heads=False)


def _embed_part(job: EmbedJob, count: int, part: SourcePart) -> Path:
    """Write the features of ``part``; runs in a worker."""
    model = _model(job.model, worker_device(job.device, part.number))
    images = read_part(part, job.storage)
    made = embed(model, images, job.spec) if job.kept is None else embed_kept(model, images, job.spec, job.kept)
    rows = list(made)
    schema = features_schema(job.spec)
    return write_part(job.work / part_name(part.number, count), table_of(rows, schema), schema)


def table_of(rows: Sequence[ImageFeatures], schema: pa.Schema) -> pa.Table:
    """``rows`` under :func:`features_schema`."""
    columns: dict[str, Any] = {
        "key": pa.array([row.key for row in rows], pa.string()),
        "error": pa.array([row.error for row in rows], pa.string()),
        "height": pa.array([row.height for row in rows], pa.int32()),
        "width": pa.array([row.width for row in rows], pa.int32()),
        "rows": pa.array([row.grid[0] if not row.error else 0 for row in rows], pa.int32()),
        "columns": pa.array([row.grid[1] if not row.error else 0 for row in rows], pa.int32()),
    }
    missing = pa.array([bool(row.error) for row in rows])
    for name in ("cls", "mean", "patches"):
        if name in schema.names:
            dtype = np.float16 if name == "patches" else np.float32
            found = [getattr(row, name) for row in rows]
            flat = [np.empty(0, dtype) if values is None else values.reshape(-1) for values in found]
            offsets = np.concatenate([[0], np.cumsum([len(values) for values in flat])]).astype(np.int32)
            values = pa.array(np.concatenate(flat) if flat else np.empty(0, dtype))
            columns[name] = pa.ListArray.from_arrays(pa.array(offsets), values, mask=missing)
    return pa.table(columns)


def _tables(files: Sequence[Path], columns: list[str] | None = None) -> Iterator[pa.Table]:
    import pyarrow.parquet as pq

    for file in files:
        yield pq.read_table(file, columns=columns)


def _errors(file: Path) -> int:
    [table] = _tables([file], ["error"])
    return sum(1 for error in table["error"].to_pylist() if error)


def _write_arrays(files: Sequence[Path], folder: Path, total: int, spec: FeatureSpec) -> None:
    """The parts as arrays on disk, one after the other; one part is in memory."""
    import pyarrow.parquet as pq

    shapes: dict[str, tuple[int, ...]] = {}  # of one image's features, once an image has some
    start = 0
    with contextlib.ExitStack() as stack:
        keys = stack.enter_context(pq.ParquetWriter(folder / "keys.parquet", _KEYS))
        arrays: dict[str, IO[bytes]] = {}
        for table in _tables(files):
            keys.write_table(table.select(_KEYS.names).cast(_KEYS))
            good = np.flatnonzero(np.array(table["error"].to_pylist(), dtype=object) == "")
            for kind in spec.kinds:
                shape, dtype = _shape(table, kind, good), np.dtype(np.float16 if kind == "patches" else np.float32)
                if shape is not None and kind not in shapes:
                    shapes[kind] = shape
                    arrays[kind] = stack.enter_context(open(folder / f"{kind}.npy", "wb"))
                    _begin_array(arrays[kind], dtype, (total, *shape), start)
                if kind not in shapes:
                    continue
                if shape not in (None, shapes[kind]):
                    raise VitrailError(f"{kind}: {_DIFFER}")
                rows = np.full((len(table), *shapes[kind]), np.nan, dtype)
                if len(good):
                    values = table[kind].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                    rows[good] = values.reshape(-1, *shapes[kind])
                rows.tofile(arrays[kind])
            start += len(table)


def _begin_array(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], missing: int) -> None:
    """The header of a ``.npy`` file of ``shape``, and NaN for its first ``missing`` rows."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for _ in range(missing):
        np.full(shape[1:], np.nan, dtype).tofile(file)


def _shape(table: pa.Table, kind: str, good: Any) -> tuple[int, ...] | None:
    """Of one image's features in this part; None where no image has any."""
    if not len(good):
        return None
    if kind != "patches":
        return (len(table[kind][int(good[0])]),)
    grids = {(table["rows"][int(row)].as_py(), table["columns"][int(row)].as_py()) for row in good}
    if len(grids) > 1:
        raise VitrailError(f"patches: {_DIFFER}")
    [(rows, columns)] = grids
    values = table["patches"][int(good[0])]
    return (rows, columns, len(values) // (rows * columns))
