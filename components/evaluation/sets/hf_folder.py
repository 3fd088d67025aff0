"""Folders of Hugging Face's ``datasets``: what ``save_to_disk`` wrote, or Parquet files as its hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from components.errors import VitrailError, nearest
from components.evaluation.sets.labelled_set import ImageColumn
from components.input_paths import InputPath
from components.params import Seed, Strict


class DatasetsParams(Strict):
    """A folder with ``dataset_dict.json`` or ``state.json``, or with ``data/train-00000-of-00001.parquet``."""

    kind: Literal["datasets"]
    path: InputPath
    train: str = "train"  # split
    test: str | None = "test"  # split; null: a share of each class of `train`
    image: str = "image"  # columns
    label: str = "label"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2  # without `test`
    seed: Seed = 0


class Split(NamedTuple):
    """A split's images and their classes by name."""

    images: ImageColumn
    classes: list[str]


def read_datasets(name: str, params: DatasetsParams) -> tuple[Split, Split | None]:
    """The training split, and the held-out one where it is named.

    Raises:
        VitrailError: a split or column is not there, or a label is empty.
    """
    test = None if params.test is None else _split(name, params, params.test)
    return _split(name, params, params.train), test


def _split(name: str, params: DatasetsParams, split: str) -> Split:
    import pyarrow as pa

    root, where = Path(params.path), f"benchmark {name}: {params.path}, split {split!r}"
    try:
        table = _table(root, split, where)
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as fault:
        raise VitrailError(f"{where}: not readable ({fault})") from None
    for column in (params.image, params.label):
        if column not in table.column_names:
            raise VitrailError(f"{where}: no column {column!r}{nearest(column, table.column_names)}")
    values = table[params.label].to_pylist()
    if None in values:
        raise VitrailError(f"{where}: row {values.index(None)} has no {params.label!r}")
    names = _class_names(table.schema, params.label)
    if names is not None and (wrong := [value for value in values if not 0 <= value < len(names)]):
        raise VitrailError(f"{where}: label {wrong[0]} is none of its {len(names)} classes")
    classes = [str(value) if names is None else names[value] for value in values]
    return Split(ImageColumn(table[params.image], f"{where}, column {params.image!r}"), classes)


def _table(root: Path, split: str, where: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = root / split if (root / "dataset_dict.json").is_file() else root
    if (root / "dataset_dict.json").is_file():
        known = json.loads((root / "dataset_dict.json").read_text())["splits"]
        if split not in known:
            raise VitrailError(f"{where}: there are {', '.join(known)}{nearest(split, known)}")
    if (folder / "state.json").is_file():
        files = [folder / one["filename"] for one in json.loads((folder / "state.json").read_text())["_data_files"]]
        return pa.concat_tables([pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files])
    parts = sorted(path for path in root.rglob("*.parquet") if path.name.startswith((f"{split}-", f"{split}.")))
    if not parts:
        raise VitrailError(
            f"{where}: neither dataset_dict.json nor state.json, and no {split}-*.parquet; for folders of classes use "
            "kind: folder"
        )
    return pa.concat_tables([pq.read_table(path, memory_map=True) for path in parts])


def _class_names(schema: Any, label: str) -> list[str] | None:
    """The names of a ClassLabel column's numbers; None where it is none."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
    except (KeyError, TypeError, ValueError):
        return None
    names = about.get("names") if isinstance(about, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else None
