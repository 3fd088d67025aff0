"""Images a second and core of each part of curation behind the fetch, and their sum beside the passes as a whole.

    python -m perf curation

The photographs of ../shared/data/imagenet-sample-1k-256px.parquet that are large enough (of 1,000), as files, in one
process on one thread. The whole is what the stage runs for a chunk: :func:`components.curate.pixels.examine.examine`,
the PCA hash fitted and applied, and :func:`components.curate.pixels.examine.store_chunk`. The parts are the functions
those call, each alone over all images: bytes read and digested, decoded (twice: once in each pass), thumbnails, PCA
hash, NSFW, faces, and faces blurred, encoded and written. What the parts leave of the whole is the price of the
sandbox, of tables and of keeping order. Parts and whole take turns; time is processor time, of child processes too,
and the least of the rounds.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from components.curate.duplicates import pca_hash
from components.curate.links.places import Place
from components.curate.params import CurateParams
from components.curate.pixels.examine import ChunkItem, StoreItem, examine, read_bytes, store_chunk
from components.curate.pixels.safety import blur_faces, find_faces, nsfw_scores
from components.images.decode import RGB, decode_probed, encode_jpeg, probe
from components.images.shards import ShardWriter
from components.params import load_params
from components.storage import open_store
from components.web.sources.link_table import iter_rows

ROUNDS = int(os.environ.get("VITRAIL_PERF_ROUNDS", "2"))
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data" / "imagenet-sample-1k-256px.parquet"


def main() -> dict[str, object]:
    """Rates by part, and the sum of the parts over the whole."""
    import cv2

    if not SHARED.exists():
        return {"curation": "left out: no photographs"}
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        return _Measured(Path(folder), pq.read_table(SHARED, columns=["image"])["image"].to_pylist()).figures()


def clock() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


class _Measured:
    def __init__(self, folder: Path, jpegs: list[bytes]) -> None:
        self.params = load_params(ROOT / "params/curate.yaml", CurateParams)
        self.folder, self.store, self.turn = folder, open_store(str(folder / "images")), 0
        jpegs = [data for data in jpegs if min(self._size(data)) >= self.params.decode.min_side]
        for number, data in enumerate(jpegs):
            self.store.write(f"{number:06d}.jpg", data)
        self.places = tuple(Place(f"{number:06d}", f"{number:06d}.jpg", -1, 0) for number in range(len(jpegs)))
        self.data: list[bytes] = []
        self.pixels: list[RGB] = []
        self.thumbnails: list[Any] = []
        self.boxes: list[list[Any]] = []

    @staticmethod
    def _size(data: bytes) -> tuple[int, int]:
        facts = probe(data)
        return facts.width, facts.height

    def figures(self) -> dict[str, object]:
        parts: dict[str, Callable[[], object]] = {
            "read, SHA-256": self.read, "decode": self.decode, "thumbnail": self.thumbnail, "PCA hash": self.hash,
            "NSFW": self.nsfw, "faces": self.faces, "blur, encode, write": self.write,
        }  # fmt: skip
        times: dict[str, list[float]] = {}
        every = self.places
        for self.turn in range(ROUNDS + 1):
            self.places = every if self.turn else every[:64]  # the first loads models and does not count
            for name, work in {**parts, "whole": self.whole}.items():
                began = clock()
                work()
                if self.turn:
                    times.setdefault(name, []).append(clock() - began)
        least = {name: min(found) for name, found in times.items()}
        summed = sum(least[name] for name in parts) + least["read, SHA-256"] + least["decode"]
        return {
            "images": len(self.places),
            "images_per_core_second": {name: round(len(self.places) / spent, 1) for name, spent in least.items()},
            "sum_of_parts_over_whole": round(summed / least["whole"], 3),
            "target": "0.85 to 1.15",
        }

    def read(self) -> None:
        self.data = [read_bytes(self.store, place, self.params.decode) for place in self.places]
        for data in self.data:
            hashlib.sha256(data).hexdigest()

    def decode(self) -> None:
        self.pixels = [decode_probed(data, self.params.decode)[0] for data in self.data]

    def thumbnail(self) -> None:
        self.thumbnails = [pca_hash.thumbnail(rgb) for rgb in self.pixels]

    def hash(self) -> None:
        thumbnails = np.stack(self.thumbnails)
        hashing = pca_hash.fit(thumbnails, self.params.pca_hash)
        assert hashing is not None
        hashing(thumbnails)

    def nsfw(self) -> None:
        nsfw_scores(self.pixels, self.params.nsfw)

    def faces(self) -> None:
        self.boxes = [find_faces(rgb, self.params.faces) for rgb in self.pixels]

    def write(self) -> None:
        faces = self.params.faces
        shards = open_store(str(self.folder / f"written-{self.turn}"))
        with ShardWriter(shards, "parts", self.params.shard_bytes) as writer:
            for place, data, rgb, boxes in zip(self.places, self.data, self.pixels, self.boxes, strict=True):
                kept = encode_jpeg(blur_faces(rgb, boxes, faces), faces.quality) if boxes else data
                writer.add(place.key, "jpg", kept)
                hashlib.sha256(kept).hexdigest()

    def whole(self) -> None:
        out = self.folder / f"whole-{self.turn}"
        out.mkdir()
        limits, sandbox = self.params.decode, self.params.sandbox
        examined = examine(ChunkItem(self.store, self.places, out / "examined.parquet", limits, sandbox))
        self.thumbnails = [np.frombuffer(bytes(row["thumbnail"]), np.uint8) for row in iter_rows(examined)]  # type: ignore[call-overload]
        self.hash()
        chunk = ChunkItem(self.store, self.places, out / "stored.parquet", limits, sandbox)
        shards = open_store(str(out / "shards"))
        store_chunk(StoreItem(chunk, shards, "whole", self.params.shard_bytes, self.params.nsfw, self.params.faces))


if __name__ == "__main__":
    print(main())
