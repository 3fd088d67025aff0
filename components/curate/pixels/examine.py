"""Second pass: each fetched image decoded within the limits, hashed, and its thumbnail kept for the PCA hash.

Third pass: survivors of all duplicate checks scored for NSFW and by the user's filters, faces blurred, bytes written
into shards.

A work item is a chunk of addresses with the place of their bytes; its results go to the work folder, so that a run
that was killed carries on with the chunks it lacks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.curate.links.places import Place
from components.curate.pixels.filters import FilterParams, filter_scores
from components.curate.pixels.safety import FaceParams, NsfwParams, blur_faces, detect_faces, nsfw_scores
from components.curate.pixels.sandboxed_decode import SandboxedDecoder
from components.images.decode import RGB, DecodeError, DecodeLimits, encode_jpeg
from components.images.sandbox import SandboxParams
from components.images.shards import ShardWriter
from components.storage import ObjectUnreadable, Store, atomic_file
from components.web.formats.warc import read_record


@dataclass(frozen=True)
class ChunkItem:
    """A chunk of images to work on."""

    store: Store
    places: Iterable[Place]
    out: Path
    limits: DecodeLimits
    sandbox: SandboxParams


@dataclass(frozen=True)
class StoreItem:
    """A chunk of surviving images to make safe and to store."""

    chunk: ChunkItem
    shards: Store
    prefix: str  # of the shards' names
    shard_bytes: int
    nsfw: NsfwParams
    faces: FaceParams
    filters: tuple[FilterParams, ...] = ()


EXAMINED = pa.schema(
    [("row", pa.int64()), ("key", pa.string()), ("reason", pa.string()), ("sha256", pa.string()), ("bytes", pa.int64()),
     ("format", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("thumbnail", pa.binary())]
)  # fmt: skip
STORED = pa.schema(
    [("row", pa.int64()), ("key", pa.string()), ("reason", pa.string()), ("nsfw", pa.float32()), ("faces", pa.int32()),
     ("face_boxes", pa.list_(pa.list_(pa.float32(), 4))), ("face_scores", pa.list_(pa.float32())),
     ("shard", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("stored_sha256", pa.string()),
     ("filter_scores", pa.list_(pa.float32()))]  # in the order of `filters`, up to the one that dropped the image
)  # fmt: skip


def read_bytes(store: Store, place: Place, limits: DecodeLimits) -> bytes:
    """The image's bytes as crawled.

    Raises:
        DecodeError: "too-many-bytes", or "truncated" where the record holds less than the response.
        ObjectUnreadable: the file is gone, denied or on a failing disk.
    """
    if place.kind == "images":
        data = store.read(place.file, 0, limits.max_bytes + 1)
        if len(data) > limits.max_bytes:
            raise DecodeError("too-many-bytes")
        return data
    if place.kind == "tars":
        if place.length > limits.max_bytes:
            raise DecodeError("too-many-bytes")
        return store.read(place.file, place.offset, place.length)
    response = read_record(store.read(place.file, place.offset, place.length), limits.max_bytes)
    if response is None:
        raise DecodeError("truncated", "unreadable record")
    if response.cut:
        raise DecodeError("too-many-bytes" if len(response.body) >= limits.max_bytes else "truncated")
    return response.body


def examine(item: ChunkItem) -> Path:
    """Decode every image of the chunk and note what it is; returns the Parquet file (:data:`EXAMINED`)."""
    if item.out.exists():
        return item.out
    eye = SandboxedDecoder(item.limits, item.sandbox)
    rows = [_examined(item, place, eye) for place in item.places]
    with atomic_file(item.out) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=EXAMINED), file)
    return item.out


def _examined(item: ChunkItem, place: Place, eye: SandboxedDecoder) -> dict[str, object]:
    row: dict[str, object] = {"row": place.row, "key": place.key, "reason": "", "sha256": "", "bytes": 0}
    row |= {"format": "", "width": 0, "height": 0, "thumbnail": b""}
    try:
        data = read_bytes(item.store, place, item.limits)
        row |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        return row | eye.facts(data)
    except DecodeError as fault:
        return row | {"reason": fault.reason}
    except ObjectUnreadable:
        return row | {"reason": "unreadable"}


def store_chunk(item: StoreItem) -> Path:
    """Score, blur and store the chunk's images; returns a Parquet file (:data:`STORED`), shards as JSON beside it."""
    out = item.chunk.out
    described = out.with_suffix(".json")
    if out.exists() and all(item.shards.exists(name) for name in json.loads(described.read_text())):
        return out
    rows: list[dict[str, object]] = []
    with ShardWriter(item.shards, item.prefix, item.shard_bytes) as writer:
        for batch in _batches(item, rows):
            rows += _stored(item, batch, writer)
    with atomic_file(described, "w") as file:
        json.dump(writer.shards, file)
    with atomic_file(out) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=STORED), file)
    return out


@dataclass(frozen=True)
class _Loaded:
    """One image in memory."""

    place: Place
    data: bytes
    rgb: RGB
    kind: str


def _batches(item: StoreItem, rows: list[dict[str, object]]) -> Iterator[list[_Loaded]]:
    """The chunk's images, ``nsfw.batch`` at a time, or fewer: those that together reach ``max_pixels`` are a batch.

    Each decoded once within the limits, if a model is to see it. One that no longer does (it crashes its decoder now
    and then), or whose bytes are no longer those that were examined, goes to ``rows`` with its reason.
    """
    looked_at = item.nsfw.enabled or item.faces.enabled or item.filters
    eye = SandboxedDecoder(item.chunk.limits, item.chunk.sandbox) if looked_at else None
    unseen = np.zeros((0, 0, 3), np.uint8)
    batch: list[_Loaded] = []
    for place in item.chunk.places:
        try:
            data = read_bytes(item.chunk.store, place, item.chunk.limits)
            if place.sha256 and hashlib.sha256(data).hexdigest() != place.sha256:
                rows.append(_blank(place) | {"reason": "changed"})
                continue
            batch.append(_Loaded(place, data, *(eye.pixels(data) if eye else (unseen, place.format))))
        except DecodeError as fault:
            rows.append(_blank(place) | {"reason": fault.reason})
            continue
        except ObjectUnreadable:
            rows.append(_blank(place) | {"reason": "unreadable"})
            continue
        pixels = sum(one.rgb.size // 3 for one in batch)
        if len(batch) >= item.nsfw.batch or pixels >= item.chunk.limits.max_pixels:
            yield batch
            batch = []
    if batch:
        yield batch


def _blank(place: Place) -> dict[str, object]:
    row: dict[str, object] = {"row": place.row, "key": place.key, "reason": "", "nsfw": float("nan"), "faces": 0}
    row |= {"face_boxes": [], "face_scores": [], "filter_scores": []}
    return row | {"shard": "", "offset": 0, "length": 0, "stored_sha256": ""}


def _stored(item: StoreItem, loaded: list[_Loaded], writer: ShardWriter) -> list[dict[str, object]]:
    scores = nsfw_scores([one.rgb for one in loaded], item.nsfw) if item.nsfw.enabled else [float("nan")] * len(loaded)
    reasons = ["nsfw" if score > item.nsfw.threshold else "" for score in scores]
    filtered = _filtered([one.rgb for one in loaded], reasons, item.filters)
    safe = [one.rgb for one, reason in zip(loaded, reasons, strict=True) if not reason]
    detected = iter(detect_faces(safe, item.faces) if item.faces.enabled else [[]] * len(safe))
    rows: list[dict[str, object]] = []
    for one, score, reason, of_filters in zip(loaded, scores, reasons, filtered, strict=True):
        place, data, rgb, kind = one.place, one.data, one.rgb, one.kind
        row = _blank(place) | {"nsfw": score, "filter_scores": of_filters}
        if reason:
            rows.append(row | {"reason": reason})
            continue
        faces = next(detected)
        boxes = [face.box for face in faces if face.box]
        if boxes:
            # The bytes with the face in them are not kept anywhere.
            data, kind = encode_jpeg(blur_faces(rgb, boxes, item.faces), item.faces.quality), "jpeg"
        where = writer.add(place.key, "jpg" if kind == "jpeg" else kind, data)
        row |= {"faces": len(boxes), "face_boxes": [np.asarray(box, np.float32).tolist() for box in boxes]}
        row["face_scores"] = [face.score for face in faces]
        row |= {"shard": where.shard, "offset": where.offset, "length": where.length}
        rows.append(row | {"stored_sha256": hashlib.sha256(data).hexdigest()})
    return rows


def _filtered(images: Sequence[RGB], reasons: list[str], filters: Sequence[FilterParams]) -> list[list[float]]:
    """Scores of each image, up to the filter that drops it; that one's reason is written into ``reasons``."""
    scores: list[list[float]] = [[] for _ in images]
    for one in filters:
        left = [at for at, reason in enumerate(reasons) if not reason]
        for at, score in zip(left, filter_scores([images[at] for at in left], one), strict=True):
            scores[at].append(score)
            if score > one.threshold:
                reasons[at] = one.reason
    return scores
