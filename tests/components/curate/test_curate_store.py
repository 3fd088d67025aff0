"""A shard that is written again, or by two workers at once, changes nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from PIL import Image

from components.curate.links.places import Place
from components.curate.pixels.examine import ChunkItem, StoreItem, store_chunk
from components.curate.pixels.safety import FaceParams, NsfwParams
from components.images.decode import DecodeLimits
from components.images.sandbox import SandboxParams
from components.storage import open_store


def test_a_retried_or_doubled_shard_changes_nothing(tmp_path: Path) -> None:
    pictures, work = tmp_path / "pictures", tmp_path / "work"
    pictures.mkdir()
    work.mkdir()
    for n in range(6):
        noise = np.random.default_rng(n).integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures / f"{n}.png")
    places = tuple(Place(f"{n:020x}", f"{n}.png", -1, 0) for n in range(6))
    chunk = ChunkItem(
        open_store(str(pictures)),
        places,
        work / "stored.parquet",
        DecodeLimits(),
        SandboxParams(enabled=False),
    )
    shards = open_store(str(work / "shards"))
    item = StoreItem(chunk, shards, "000000", 40_000, NsfwParams(enabled=False), FaceParams(enabled=False))

    def written() -> dict[str, bytes]:
        return {path.relative_to(work).as_posix(): path.read_bytes() for path in work.rglob("*") if path.is_file()}

    store_chunk(item)
    first = written()
    assert sorted(first) == [
        "shards/000000-00.tar", "shards/000000-01.tar", "shards/000000-02.tar", "stored.json", "stored.parquet"
    ]  # fmt: skip
    times = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    store_chunk(item)  # finished: not done again
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == times

    (work / "stored.parquet").unlink()  # killed between the shards and their table
    (work / "shards/000000-01.tar").unlink()  # and one shard lost
    two = [threading.Thread(target=store_chunk, args=(item,)) for _ in range(2)]
    for thread in two:
        thread.start()
    for thread in two:
        thread.join()
    assert written() == first
