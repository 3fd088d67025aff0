"""The images nearest to a query, by cosine of their features: an index on disk, a table, and a page with pictures."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.images.decode import RGB, DecodeError, encode_jpeg
from components.neighbours.factory import factory_for, lists_of
from components.neighbours.files import IndexFolder
from components.neighbours.params import NeighbourParams
from components.neighbours.search import Neighbours
from components.release.use.embed import EmbedParams, embed_all
from components.release.use.features import FeatureSpec, Picture, embed_array, pixels
from components.release.use.images import Places, SourcePart, parts_of, read_part, single
from components.release.use.pictures import shrunk
from components.release.weights.load import LoadedModel
from components.storage import StorageParams, atomic_file

FACTS, VECTORS, KEYS, FEATURES = "index.json", "vectors.npy", "keys.parquet", "features"
THUMBNAIL = 160  # px of a side on the page
PIECE = 1_000_000  # rows that are added to a coded index at a time


@dataclass(frozen=True)
class Hit:
    """A neighbour of a query."""

    key: str
    cosine: float
    row: int  # of the source's images


def build(model: str, images: str, out: Path, params: EmbedParams, neighbours: NeighbourParams) -> dict[str, Any]:
    """Embed ``images`` and index them in the folder ``out``; returns what ``index.json`` there says.

    Up to ``neighbours.flat_up_to`` images every search is exact; above, candidates of a coded index are scored exactly.
    The same command carries on where it was stopped. Images that cannot be used are left out.
    """
    (out / FACTS).unlink(missing_ok=True)
    params = replace(params, form="parquet", spec=params.spec.model_copy(update={"kinds": ("cls",)}))
    facts = embed_all(model, images, out / FEATURES, params)
    vectors = _vectors(out, facts)
    coded = bool(lists_of(factory_for(len(vectors), vectors.shape[1], neighbours, gpu=False)))
    if coded:
        folder = IndexFolder(out / "faiss")
        folder.train(vectors, json.dumps(facts["weights"]), neighbours)
        ranges = [(start, min(start + PIECE, len(vectors))) for start in range(0, len(vectors), PIECE)]
        for start, stop in ranges:
            folder.build_piece(vectors, start, stop, neighbours)
        folder.merge(ranges)
    facts |= {
        "indexed": len(vectors), "coded": coded, "neighbours": neighbours.model_dump(mode="json"),
        "curated": str(params.places.curated), "storage": params.places.storage.model_dump(mode="json"),
        "part_rows": params.part_rows or 4096,
    }  # fmt: skip
    with atomic_file(out / FACTS, "w") as file:
        file.write(json.dumps(facts, indent=1) + "\n")
    return facts


class Index:
    """An index folder, open for queries."""

    def __init__(self, folder: Path) -> None:
        """Open what :func:`build` wrote.

        Raises:
            VitrailError: it is not there or not finished.
        """
        import pyarrow.parquet as pq

        try:
            self.facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
            table = pq.read_table(folder / KEYS)
            self._vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as fault:
            raise VitrailError(f"{folder}: no finished index here ({fault}); run `retrieve index` first") from None
        self._keys: list[str] = table["key"].to_pylist()
        self._rows: list[int] = table["row"].to_pylist()
        self._parts: list[SourcePart] | None = None
        params = NeighbourParams(**self.facts["neighbours"])
        self._search = (
            IndexFolder(folder / "faiss").open(self._vectors, params)
            if self.facts["coded"]
            else Neighbours(self._vectors, params)
        )

    def query(self, model: LoadedModel, images: Sequence[Picture], k: int = 10) -> list[list[Hit]]:
        """The ``k`` nearest indexed images of each of ``images``, nearest first.

        Raises:
            VitrailError: an image cannot be used, or the model's features are not of the index's length.
        """
        spec = FeatureSpec(**self.facts["spec"])
        queries = embed_array(model, images, spec)
        if queries.shape[1] != self.facts["dim"]:
            raise VitrailError(
                f"features of {queries.shape[1]} numbers; the index has {self.facts['dim']}: another model"
            )
        queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
        cosines, rows = self._search.search(queries, min(k, len(self._keys)))
        return [
            [Hit(self._keys[r], float(c), self._rows[r]) for c, r in zip(cosines[n], rows[n], strict=True) if r >= 0]
            for n in range(len(images))
        ]

    def picture(self, row: int) -> RGB | None:
        """The indexed image of that row of the source; None where it is there no more or changed its place."""
        storage = StorageParams(**self.facts["storage"])
        places = Places(Path(self.facts["curated"]), storage)
        if self._parts is None:
            self._parts = parts_of(self.facts["images"], int(self.facts["part_rows"]), places)
        [(_, data)] = read_part(single(self._parts, row), storage)
        try:
            return None if isinstance(data, VitrailError) else pixels(data)
        except DecodeError:
            return None


def page(index: Index, named: Sequence[tuple[str, Picture]], found: Sequence[Sequence[Hit]]) -> str:
    """An HTML page, complete in one file: each query with its neighbours as pictures."""
    rows = []
    for (name, image), hits in zip(named, found, strict=True):
        figures = [_figure(_thumbnail(pixels(image)), name, "query")]
        for hit in hits:
            shown = index.picture(hit.row)
            figures.append(_figure(None if shown is None else _thumbnail(shown), hit.key, f"{hit.cosine:.3f}"))
        rows.append(f"<section>{''.join(figures)}</section>")
    style = (
        "body{font:14px sans-serif;margin:1em}section{display:flex;flex-wrap:wrap;gap:8px;margin-bottom:1.5em}"
        f"figure{{margin:0;width:{THUMBNAIL}px}}img{{width:100%}}figcaption{{overflow-wrap:anywhere}}"
        "figure:first-child{border-right:3px solid #888;padding-right:8px}"
    )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Nearest images</title><style>{style}</style>'
    return f"{head}<h1>Nearest images</h1>{''.join(rows)}</html>\n"


def _vectors(out: Path, facts: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Unit vectors of all images that have features as a file, with their keys beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = facts["rows"] - facts["errors"]
    if not count:
        raise VitrailError(f"{facts['images']}: none of {facts['rows']} images could be used")
    keys: list[str] = []
    rows: list[int] = []
    with atomic_file(out / VECTORS) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, facts["dim"])}
        np.lib.format.write_array_header_1_0(file, header)
        start = 0
        for part in sorted((out / FEATURES).glob("part-*.parquet")):
            table = pq.read_table(part, columns=["key", "error", "cls"])
            good = [n for n, error in enumerate(table["error"].to_pylist()) if not error]
            chosen = table.take(good)
            values = chosen["cls"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, facts["dim"])
            norms = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
            file.write(np.ascontiguousarray(values / norms, "<f4").tobytes())
            keys += chosen["key"].to_pylist()
            rows += [start + n for n in good]
            start += len(table)
    with atomic_file(out / KEYS) as file:
        pq.write_table(pa.table({"key": keys, "row": pa.array(rows, pa.int64())}), file)
    vectors: npt.NDArray[np.float32] = np.load(out / VECTORS, mmap_mode="r", allow_pickle=False)
    return vectors


def _thumbnail(rgb: RGB) -> str:
    return base64.b64encode(encode_jpeg(shrunk(rgb, THUMBNAIL), 85)).decode()


def _figure(picture: str | None, name: str, note: str) -> str:
    shown = f'<img alt="" src="data:image/jpeg;base64,{picture}">' if picture else "<p>not there any more</p>"
    return f"<figure>{shown}<figcaption>{html.escape(note)}<br>{html.escape(name)}</figcaption></figure>"
