"""Find the pool's images nearest to a picture, by the copy graph's own rule, with scores and where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.dedup.pool.extract import check_described, describe_pictures
from components.dedup.pool.images import Pool
from components.dedup.revisit import check_same_pool
from components.descriptors.kinds import load_descriptor
from components.descriptors.rows import DescriptorRows
from components.errors import VitrailError
from components.images.decode import DecodeError, DecodeLimits, decode
from components.neighbours import IndexFolder, NeighbourParams
from components.params import parse_params
from components.storage import StorageParams
from components.tables.parts import read_table
from components.tables.schemas import DECISIONS

BLOCK = 1 << 14  # images compared at a time
COLUMNS = ("cosine", "copy", "decision", "key", "url", "page", "alt", "source")


def search(image: Path, curated: Path, dedup: Path, k: int, storage: StorageParams) -> str:
    """A line for each of the ``k`` nearest images: cosine, whether that is a copy, decision, key, and where from.

    The rule is the copy graph's: the picture against all views of an image, and the picture's views against the image;
    the largest cosine counts, and over the self-dedup threshold in force it is a copy. Where the pool was searched
    through an index, so is this; else every descriptor is compared.

    Raises:
        VitrailError: no such picture or not one, or the stage's outputs are missing or of another pool.
    """
    from components.dedup.params import DedupParams

    try:
        picture = decode(image.read_bytes(), DecodeLimits())
    except OSError as fault:
        raise VitrailError(f"{image}: {fault.strerror}; give the path of a picture") from None
    except DecodeError as fault:
        raise VitrailError(f"{image}: not a readable picture ({fault.reason})") from None
    pool = Pool.load(curated, storage)
    check_same_pool(pool, dedup)
    params = parse_params(json.loads((dedup / "params.json").read_text()), DedupParams, str(dedup / "params.json"))
    descriptor = load_descriptor(params.descriptor, dedup / "descriptor.safetensors", storage)
    query = describe_pictures(descriptor, [picture], params.described_views())
    check_described(query, lambda _: str(image))
    rows = DescriptorRows(dedup / "descriptors.npy").open()
    if len(rows) != len(pool) or rows.shape[1:] != query.shape[1:]:
        raise VitrailError(
            f"{dedup}: descriptors {list(rows.shape)} do not match {len(pool)} images of {list(query.shape[1:])}; run "
            "the dedup stage again"
        )
    index = dedup / "index"
    candidates = _proposed(index, rows, query[0], k, params.neighbours) if index.is_dir() else np.arange(len(rows))
    scores, found = nearest(rows, query[0], k, candidates)
    threshold = json.loads((dedup / "thresholds.json").read_text())["self"]
    images = pool.take(np.array(found, np.int64), FACTS).to_pylist()
    reasons = _reasons(dedup / "decisions", [image["key"] for image in images])
    lines = [
        COLUMNS,
        *(_line(image, reasons[image["key"]], score, threshold) for score, image in zip(scores, images, strict=True)),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    padded = ([*(f"{cell:{w}}" for cell, w in zip(line, widths, strict=False)), *line[5:]] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def nearest(
    rows: NDArray[Any], query: NDArray[Any], k: int, candidates: NDArray[np.int64]
) -> tuple[list[float], list[int]]:
    """The ``k`` of the ``candidates`` nearest to one picture, exactly, the nearest first, block by block.

    ``rows`` [N, R, d] and ``query`` [R, d], of all views; the first is the whole image.
    """
    scores = np.empty(len(candidates), np.float32)
    asked = np.asarray(query, np.float32)
    for start in range(0, len(candidates), BLOCK):
        block = np.asarray(rows[candidates[start : start + BLOCK]], np.float32)
        of_views = (block @ asked[0]).max(1)
        of_wholes = (block[:, 0] @ asked.T).max(1)
        scores[start : start + len(block)] = np.maximum(of_views, of_wholes)
    best = np.lexsort((candidates, -scores))[:k]
    return scores[best].tolist(), candidates[best].tolist()


def _proposed(
    folder: Path, rows: NDArray[Any], query: NDArray[Any], k: int, params: NeighbourParams
) -> NDArray[np.int64]:
    """The images that the index of all views, hashed and memory-mapped, proposes for scoring."""
    flat = rows.reshape(-1, rows.shape[2])
    index = IndexFolder(folder).open(flat, params.model_copy(update={"lists": "mapped", "device": "cpu"}))
    _, found = index.search(query, min(k * rows.shape[1], len(flat)))
    return np.unique(found[found >= 0] // rows.shape[1])


FACTS = ("key", "url", "page", "alt", "source", "source_offset")


def _reasons(decisions: Path, keys: list[str]) -> dict[str, str]:
    """What was decided about a few images."""
    table = read_table(decisions, DECISIONS, pc.field("key").isin(keys), ["key", "reason"])
    return dict(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))


def _line(image: dict[str, Any], reason: str, score: float, threshold: float) -> tuple[str, ...]:
    source = image["source"] if image["source_offset"] < 0 else f"{image['source']} at {image['source_offset']}"
    given = image["key"], image["url"], image["page"], json.dumps(image["alt"], ensure_ascii=False), source
    copy = "yes" if score > threshold else "no"
    return f"{score:6.3f}", copy, reason, *map(_printable, given)


def _printable(text: str) -> str:
    """``text`` from the crawl on one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text) or "-"
