"""Find the pool's images nearest to a picture, with scores and where they come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from components.dedup.decide import REASONS
from components.dedup.descriptors import load_descriptor
from components.dedup.extract import Pool, describe_pictures
from components.errors import VitrailError
from components.images.decode import DecodeError, DecodeLimits, decode
from components.images.tables import DECISIONS, read_table
from components.neighbours import knn
from components.params import parse_params
from components.storage import StorageParams


def search(image: Path, curated: Path, dedup: Path, k: int, storage: StorageParams) -> str:
    """A line for each of the ``k`` nearest images: cosine, whether that is a copy, decision, key, URL.

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
    descriptor = load_descriptor(params.descriptor, dedup / "descriptor.safetensors", storage)
    base = np.load(dedup / "descriptors.npy", mmap_mode="r", allow_pickle=False)
    query = describe_pictures(descriptor, [picture])[:, 0]
    similarity, rows = knn(base, query, min(k, len(base)), params.neighbours)
    threshold = json.loads((dedup / "thresholds.json").read_text())["self"]
    reasons, urls = decisions["reason"].to_pylist(), pool.rows["url"].to_pylist()
    lines = [f"cosine  copy  {'decision':16}  key                   url"]
    for score, row in zip(similarity[0], rows[0], strict=True):
        decision = reasons[row] if reasons[row] in REASONS else f"{reasons[row]}"
        copy = "yes" if score > threshold else "no"
        lines.append(f"{score:6.3f}  {copy:4}  {decision:16}  {pool.keys[row]}  {urls[row]}")
    return "\n".join(lines)
