"""A map of images by their features: points, thumbnails, labels, and what curation decided about copies.

The folder of a map holds ``points.parquet``, ``thumbnails.bin`` (JPEGs one after the other) and ``index.html``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import VitrailError
from components.images.decode import DecodeError, encode_jpeg
from components.params import fingerprint
from components.progress import track
from components.release.use.embed import EmbedParams, embed_all
from components.release.use.features import pixels
from components.release.use.images import SourcePart, digest_of, parts_of, read_part
from components.release.use.labelled import labels_of
from components.release.use.pictures import shrunk
from components.release.weights.fetch import pinned
from components.release.weights.load import weights_digests
from components.release.weights.outputs import check_replaceable
from components.storage import StorageParams, atomic_dir
from components.tables.parts import iter_batches, write_part
from components.tables.schemas import DECISIONS, INDEX, MANIFEST, said

FACTS, POINTS, THUMBNAILS, PAGE = "map.json", "points.parquet", "thumbnails.bin", "index.html"
LANDMARKS = 5_000  # images that t-SNE places; all others lie among their nearest landmarks
SEED = 0


@dataclass(frozen=True)
class MapSource:
    """What is shown."""

    images: str  # as of `embed`; also an index of curation, or "" where `benchmark` is given
    label_column: str = "label"  # of a table
    decisions: Path | None = None  # table of dedup
    benchmark: tuple[Path, str] | None = None  # params/benchmarks.yaml and a name in it
    most: int = 50_000  # images on the map; of more, evenly spread ones
    thumbnail: int = 96  # px of the longer side


class Known(NamedTuple):
    """What tables say of one image."""

    label: str = ""
    status: str = ""  # "selected" or "dropped"
    reason: str = ""
    group: int = -1  # component of the copy graph; -1: no copies known


def build(model: str, source: MapSource, out: Path, params: EmbedParams) -> dict[str, Any]:
    """Write the map's folder ``out``; returns what ``map.json`` there says. Nothing is done where it is up to date.

    Raises:
        VitrailError: model, images or tables are not there, or fewer than three images can be used.
    """
    check_replaceable(out, FACTS)
    model = str(pinned(model))
    params = replace(params, form="parquet", spec=params.spec.model_copy(update={"kinds": ("cls",)}))
    images = _prepared(source, out)
    rows = params.part_rows or 4096
    parts = parts_of(images, rows, params.places)
    decided = None if source.decisions is None else [str(source.decisions), _times(source.decisions)]
    mark = fingerprint(
        weights_digests(model), params.spec, digest_of(parts),
        [source.label_column, source.most, source.thumbnail, decided],
    )  # fmt: skip
    if (known := _facts(out)) is not None and known["mark"] == mark:
        return known
    work = out.with_name(f".{out.name}.features")
    embed_all(model, images, work, params)
    keys, good, features = _features(work)
    if len(good) < 3:
        raise VitrailError(f"{images}: {len(good)} of {len(keys)} images can be used; a map needs three or more")
    if len(good) > source.most:
        good, features = _spread(good, source.most), features[_spread(np.arange(len(good)), source.most)]
    labels = labels_of(images, source.label_column, parts)
    about = _known(keys, labels, source.decisions, good.tolist())
    places = place(features)
    facts = {"mark": mark, "model": model, "images": images, "rows": len(keys), "shown": len(good)}
    with atomic_dir(out) as folder:
        ends = _thumbnails(parts, params.places.storage, good.tolist(), source.thumbnail, folder / THUMBNAILS)
        table = {"key": [keys[row] for row in good], "x": places[:, 0], "y": places[:, 1], "end": ends}
        table |= {name: [getattr(one, name) for one in about] for name in Known._fields}
        pq.write_table(pa.table(table), folder / POINTS)
        from components.release.use.explore_page import page

        (folder / PAGE).write_text(page(pq.read_table(folder / POINTS), facts), encoding="utf-8")
        (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    _remove(work, out)
    return facts


def place(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Places [N, 2] on the map of ``features`` [N, D], by cosine: near images are near.

    t-SNE (van der Maaten and Hinton, 2008) places up to :data:`LANDMARKS` images, drawn by :data:`SEED`. Every other
    image lies at the mean of its three nearest landmarks, weighted by similarity. Equal input gives equal places.
    """
    from sklearn.manifold import TSNE

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    # Drawn, not evenly spread: classes may follow each other in turn.
    marks = np.sort(np.random.default_rng(SEED).permutation(len(unit))[:LANDMARKS])
    perplexity = min(30.0, max(1.0, (len(marks) - 1) / 3))
    init = "pca" if min(len(marks), unit.shape[1]) > 2 else "random"
    found = TSNE(perplexity=perplexity, init=init, random_state=SEED).fit_transform(unit[marks])
    if len(marks) == len(unit):
        return np.asarray(found, np.float32)
    places = np.empty((len(unit), 2), np.float32)
    for start in range(0, len(unit), 4096):
        cosines = unit[start : start + 4096] @ unit[marks].T
        nearest = np.argpartition(-cosines, 2, axis=1)[:, :3]
        weights = np.exp(20 * np.take_along_axis(cosines, nearest, 1))
        places[start : start + 4096] = (found[nearest] * weights[..., None]).sum(1) / weights.sum(1)[:, None]
    places[marks] = found
    return places


def _spread(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    return rows if len(rows) <= most else rows[np.arange(most) * len(rows) // most]


def _prepared(source: MapSource, out: Path) -> str:
    """A source that :func:`embed_all` takes: a benchmark, or an index of curation, is written as a table first."""
    if source.benchmark is not None:
        return str(_benchmark_table(*source.benchmark, out.with_name(f".{out.name}.images") / "benchmark.parquet"))
    path = Path(source.images)
    first = next(iter(sorted(path.glob("part-*.parquet"))), path) if path.is_dir() else path
    if first.suffix == ".parquet" and first.is_file() and said(pq.read_schema(first), "table") == "index":
        return str(_pool(path, out.with_name(f".{out.name}.images") / "pool.parquet"))
    return source.images


def _pool(index: Path, out: Path) -> Path:
    """The kept images of an index as a manifest."""
    rows: list[dict[str, Any]] = []
    columns = ["key", "shard", "offset", "length", "width", "height", "status"]
    for batch in iter_batches(index, INDEX, columns):
        for row in batch.to_pylist():
            if row.pop("status") == "kept":
                rows.append(row | {"weight": 1.0, "reason": "pool", "sources": []})
    return write_part(out, pa.Table.from_pylist(rows, MANIFEST), MANIFEST)


def _benchmark_table(path: Path, name: str, out: Path) -> Path:
    from components.evaluation.sets.benchmarks import load_named

    found = load_named(path, name)
    count = range(len(found.keys))
    columns: dict[str, Any] = {"image": [found.images.bytes(row) for row in count], "key": found.keys}
    for task, numbers in found.labels.items():
        columns[task] = [found.class_names[task][number] for number in numbers]
    columns.setdefault("label", columns[next(iter(found.labels))])
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), out, row_group_size=256)
    return out


def _features(work: Path) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Keys of all images, the rows that have features, and those [N, D]."""
    keys: list[str] = []
    good: list[int] = []
    found = []
    for file in sorted(work.glob("part-*.parquet")):
        table = pq.read_table(file, columns=["key", "error", "cls"])
        usable = [row for row, error in enumerate(table["error"].to_pylist()) if not error]
        good += [len(keys) + row for row in usable]
        keys += table["key"].to_pylist()
        values = table.take(usable)["cls"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if usable:
            found.append(np.asarray(values, np.float32).reshape(len(usable), -1))
    return keys, np.array(good, np.int64), np.concatenate(found) if found else np.empty((0, 1), np.float32)


def _known(
    keys: Sequence[str], labels: Sequence[str] | None, decisions: Path | None, rows: Sequence[int]
) -> list[Known]:
    about: dict[str, tuple[str, str, int]] = {}
    wanted = {keys[row] for row in rows}
    if decisions is not None:
        for batch in iter_batches(decisions, DECISIONS, ["key", "status", "reason", "component"]):
            for row in batch.to_pylist():
                if row["key"] in wanted:
                    about[row["key"]] = (row["status"], row["reason"], row["component"])
        if not about:
            raise VitrailError(f"{decisions}: none of the images is in this table; are they of another pool?")
    found = [
        Known("" if labels is None else labels[row], *about.get(keys[row], ("unknown" if about else "", "", -1)))
        for row in rows
    ]
    counts: dict[int, int] = {}
    for one in found:
        counts[one.group] = counts.get(one.group, 0) + 1
    return [one if counts[one.group] > 1 else one._replace(group=-1) for one in found]


def _thumbnails(
    parts: Sequence[SourcePart], storage: StorageParams, rows: Sequence[int], side: int, out: Path
) -> list[int]:
    """Write the JPEGs of ``rows`` of the source to ``out``; where each ends, in bytes. One that is gone is empty."""
    ends = []
    wanted = set(rows)
    with open(out, "wb") as file:
        for data in track(_chosen(parts, storage, wanted), "thumbnails", len(wanted), unit="images"):
            try:
                if not isinstance(data, VitrailError):
                    file.write(encode_jpeg(shrunk(pixels(data), side), 80))
            except DecodeError:
                pass  # it changed since its features were computed; its point stays
            ends.append(file.tell())
    return ends


def _chosen(parts: Sequence[SourcePart], storage: StorageParams, wanted: set[int]) -> Iterator[bytes | VitrailError]:
    at = 0
    for part in parts:
        if wanted.isdisjoint(range(at, at + len(part))):
            at += len(part)
            continue
        for _, data in read_part(part, storage):
            if at in wanted:
                yield data
            at += 1


def map_facts(out: Path) -> dict[str, Any]:
    """What ``map.json`` in the folder of a map says.

    Raises:
        VitrailError: there is no map.
    """
    if (facts := _facts(out)) is None:
        raise VitrailError(f"{out}: no map here; give --model and --images to make one")
    return facts


def _facts(out: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((out / FACTS).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"mark", "rows", "shown"} <= found.keys() else None


def _times(path: Path) -> list[int]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if missing := [file for file in files if not file.is_file()]:
        raise VitrailError(f"{missing[0]}: no such table of decisions; run dedup first")
    return [file.stat().st_mtime_ns for file in files]


def _remove(work: Path, out: Path) -> None:
    import shutil

    for folder in (work, out.with_name(f".{out.name}.images")):
        shutil.rmtree(folder, ignore_errors=True)
