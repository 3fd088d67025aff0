"""The tables that travel between stages, as Arrow schemas with a version, and how they are read and written.

* **index**: one row an image link found by curation, kept or dropped, with the reason. Image bytes stand in tar shards
  beside it; ``shard``, ``offset`` and ``length`` say where. A row's story is complete here: every later decision is a
  manifest over these rows, and no stage rewrites an image.
* **manifest**: the rows that a stage selected, with weight and reason.
* **decisions**: what dedup decided about every kept index row, and against which other image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import VitrailError
from components.storage import StorageParams, Store, atomic_file, open_store

VERSION = 1

INDEX = pa.schema(
    [
        ("key", pa.string()),  # first 20 hex digits of SHA-256 of the URL: unique a row
        ("url", pa.string()),  # http(s) address, or file:relative/path for a folder of images
        ("page", pa.string()),  # address of the page whose <img> named it; "" for a folder
        ("alt", pa.string()),
        ("licence", pa.string()),  # what the page or table states: an address or a name; "" when nothing
        ("source", pa.string()),  # WARC file or folder that held the bytes
        ("source_offset", pa.int64()),  # of the WARC record; -1 where there is none
        ("status", pa.string()),  # "kept" or "dropped"
        ("reason", pa.string()),  # why it was dropped (components.curate.reasons); "" when kept
        ("decisions", pa.list_(pa.string())),  # what each source said up to the one that decided: "source: finding"
        ("duplicate_of", pa.string()),  # key of the kept image that this one repeats; "" otherwise
        ("sha256", pa.string()),  # of the bytes as crawled; "" when there are none
        ("format", pa.string()),  # "jpeg", "png", ...; "" when unknown
        ("width", pa.int32()),  # pixels, after EXIF orientation; 0 when unknown
        ("height", pa.int32()),
        ("pca_hash", pa.string()),  # hex; "" when not computed
        ("nsfw", pa.float32()),  # score in [0, 1]; NaN when not computed
        ("faces", pa.int32()),  # faces found and blurred
        ("face_boxes", pa.list_(pa.list_(pa.float32(), 4))),  # x, y, width, height in pixels
        ("face_scores", pa.list_(pa.float32())),  # confidence of each box, in [0, 1]
        ("shard", pa.string()),  # tar file name, relative to the shards' base; "" when dropped
        ("offset", pa.int64()),  # of the image's first byte in the tar
        ("length", pa.int64()),  # bytes
        ("stored_sha256", pa.string()),  # of the bytes in the shard (differs from sha256 after blurring)
    ],
    metadata={"vitrail.table": "index", "vitrail.version": "3"},  # 2: licence; 3: decisions, face_scores
)

MANIFEST = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("weight", pa.float32()),  # how often the sampler draws it, relative to 1
        ("reason", pa.string()),  # why it was selected, e.g. "retrieved:elpv" or "pool"
        ("sources", pa.list_(pa.string())),  # every data set that brought it, by query or as is; none without retrieval
    ],
    metadata={"vitrail.table": "manifest", "vitrail.version": str(VERSION)},
)

DECISIONS = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),  # "selected" or "dropped"
        # "held-out-identical", "held-out", "self-duplicate", "not-retrieved"; the manifest's reason when selected
        ("reason", pa.string()),
        ("component", pa.int64()),  # connected component of the copy graph
        ("representative", pa.string()),  # the component's kept key; "" when the component was dropped whole
        ("match", pa.string()),  # the image that decided: a key, or "benchmark/row" for a held-out image or a query
        ("similarity", pa.float32()),  # the cosine that decided, between these views; NaN where none did
        ("view", pa.int16()),  # of this image: 0 the whole, then the windows in order, then the mirror image; -1: none
        ("match_view", pa.int16()),  # of the image that decided
    ],
    metadata={"vitrail.table": "decisions", "vitrail.version": "2"},  # 2: the cosine that decided, view, match_view
)


def write_table(path: Path, rows: pa.Table | list[dict[str, object]], schema: pa.Schema) -> None:
    """Write ``rows`` under ``schema`` to ``path``, which appears whole or not at all."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema)
    with atomic_file(path) as file:
        pq.write_table(table.select(schema.names).cast(schema).replace_schema_metadata(schema.metadata), file)


def read_table(path: Path, schema: pa.Schema, only: pc.Expression | None = None) -> pa.Table:
    """Read a table written by :func:`write_table`, checking that it is the same kind and version.

    ``only``: the rows wanted; others are not held in memory.

    Raises:
        VitrailError: no such file, not Parquet, or another kind or version of table.
    """
    name = schema.metadata[b"vitrail.table"].decode()
    try:
        table = pq.read_table(path, filters=only)
    except FileNotFoundError:
        raise VitrailError(f"{path}: the {name} is not there; run the stage that makes it first") from None
    except (pa.ArrowException, OSError) as fault:
        said = " ".join(str(fault).split())
        raise VitrailError(f"{path}: not a readable {name} ({said}); rerun the stage that makes it") from None
    found = table.schema.metadata or {}
    if found.get(b"vitrail.table") != schema.metadata[b"vitrail.table"]:
        raise VitrailError(f"{path}: expected a Vitrail {name} table, found {found.get(b'vitrail.table', b'none')!r}")
    if found.get(b"vitrail.version") != (wanted := schema.metadata[b"vitrail.version"]):
        raise VitrailError(
            f"{path}: {name} version {found.get(b'vitrail.version')!r}, this code reads {wanted!r}; rerun its stage"
        )
    if missing := set(schema.names) - set(table.schema.names):
        raise VitrailError(f"{path}: a damaged {name}, without column {sorted(missing)[0]!r}; rerun its stage")
    return table.select(schema.names)


def data_digest(manifest: bytes, shards: Mapping[str, Mapping[str, object]]) -> str:
    """SHA-256 (hex) of a training set: the bytes of ``manifest.parquet`` and the digests of the shards."""
    digest = hashlib.sha256(manifest)
    for name, entry in sorted(shards.items()):
        digest.update(f"{name}={entry['sha256']}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Shards:
    """Where the shards of an index stand (``shards.json`` beside ``index.parquet``), and their digests.

    ``base`` is ``""`` when they stand in the folder ``shards/`` beside the file (the default: DVC tracks them with it),
    else the store's root, such as ``s3://bucket/prefix/curate``.
    """

    base: str
    shards: dict[str, dict[str, object]]  # name -> {"sha256": hex, "bytes": int}

    @staticmethod
    def load(curated: Path) -> Shards:
        """Read ``curated/shards.json``."""
        path = curated / "shards.json"
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise VitrailError(f"{path}: not there; run the curate stage first") from None
        return Shards(content["base"], content["shards"])

    def save(self, curated: Path) -> None:
        """Write ``curated/shards.json``."""
        with atomic_file(curated / "shards.json", "w") as file:
            json.dump({"base": self.base, "shards": self.shards}, file, indent=1, sort_keys=True)

    def store(self, curated: Path, storage: StorageParams) -> Store:
        """The store that holds the shards, whatever folder the curated set was moved to."""
        if not self.base:
            return open_store(str(curated / "shards"))
        return open_store(storage.model_copy(update={"root": self.base}))
