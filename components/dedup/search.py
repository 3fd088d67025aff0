"""Find the pool's images nearest to a picture, with scores and where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.dedup.descriptors import load_descriptor
from components.dedup.extract import Pool, describe_pictures
from components.errors import VitrailError
from components.images.decode import DecodeError, DecodeLimits, decode
from components.images.tables import DECISIONS, read_table
from components.neighbours import NeighbourParams, knn
from components.params import parse_params
from components.storage import StorageParams

BLOCK = 1 << 18  # rows compared at a time


def search(image: Path, curated: Path, dedup: Path, k: int, storage: StorageParams) -> str:
    """A line for each of the ``k`` nearest images: cosine, whether that is a copy, decision, key, URL and page.

    Raises:
        VitrailError: no such picture or not one, or the stage's outputs are missing or of another pool.
    """
    from components.dedup.stage import DedupParams

    try:
        picture = decode(image.read_bytes(), DecodeLimits())
    except OSError as fault:
        raise VitrailError(f"{image}: {fault.strerror}; give the path of a picture") from None
    except DecodeError as fault:
        raise VitrailError(f"{image}: not a readable picture ({fault.reason})") from None
    decisions = read_table(dedup / "decisions.parquet", DECISIONS)
    pool = Pool.load(curated, storage)
    if decisions["key"].to_pylist() != pool.keys:
        raise VitrailError(f"{dedup} was made from another pool than {curated}; run the dedup stage again")
    params = parse_params(json.loads((dedup / "params.json").read_text()), DedupParams, str(dedup / "params.json"))
    keys = pool.keys
    descriptor = load_descriptor(params.descriptor, dedup / "descriptor.safetensors", storage)
    base = np.load(dedup / "descriptors.npy", mmap_mode="r", allow_pickle=False)
    query = describe_pictures(descriptor, [picture])[:, 0]
    similarity, rows = _nearest(base, query, k, params.neighbours)
    threshold = json.loads((dedup / "thresholds.json").read_text())["self"]
    reasons, urls, pages = decisions["reason"], pool.rows["url"], pool.rows["page"]
    lines = [f"cosine  copy  {'decision':16}  key                   url  (page)"]
    for score, row in zip(similarity.tolist(), rows.tolist(), strict=True):
        page = f"  ({pages[row]})" if pages[row].as_py() else ""
        copy = "yes" if score > threshold else "no"
        lines.append(f"{score:6.3f}  {copy:4}  {reasons[row].as_py():16}  {keys[row]}  {urls[row]}{page}")
    return "\n".join(lines)


def _nearest(
    base: NDArray[Any], query: NDArray[Any], k: int, params: NeighbourParams
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ``k`` rows of ``base`` nearest to one query, exactly, block by block: one look needs no index."""
    exact = params.model_copy(update={"factory": "Flat"})
    scores, rows = [], []
    for start in range(0, len(base), BLOCK):
        block = base[start : start + BLOCK]
        similarity, found = knn(block, query, min(k, len(block)), exact)
        scores.append(similarity[0])
        rows.append(found[0] + start)
    score, row = np.concatenate(scores), np.concatenate(rows)
    best = np.lexsort((row, -score))[:k]
    return score[best], row[best]
