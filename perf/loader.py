"""Images per second per core: the loader's full multi-crop (2 x 224 + 8 x 98) against the plain reference.

Real JPEGs of 256 pixels on the shorter side from ../shared/data where it is present, and photographs of skimage at
their own 300 to 512 pixels. Both sides run in this one thread, in turn, and are timed by the CPU seconds they take, so
other processes on the machine count little. "ours" makes what the reference makes, normalised float32 batches;
"ours_uint8" is what workers hand over when the training device normalises, "ours_color_on_device" what they hand over
when it is a GPU: there jitter, blur and solarize run in batches, too (``augment.color_on``). What is left to the device
is not in that figure, so it is compared with the reference less its colour operations as well.
"""

from __future__ import annotations

import functools
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from components.images.loader import ManifestDataset

BATCH, ROUNDS, IMAGES = 16, 8, 48
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample-1k-256px.parquet"


def main() -> dict[str, object]:
    """Measure and return rates (images per CPU second) and ratios."""
    import cv2
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        return _measure()
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(-1)


def _measure() -> dict[str, object]:
    figures: dict[str, object] = {"target": 8.0}
    for name, jpegs in photographs().items():
        with tempfile.TemporaryDirectory() as folder:
            rates = interleaved(works(Path(folder), jpegs))
        figures[name] = {
            "images_per_core_second": {work: round(rate, 1) for work, rate in rates.items()},
            "times_the_reference": {
                work: round(rate / rates["reference"], 2)
                for work, rate in rates.items()
                if work.startswith("ours") and work != "ours_demo_crops_cached"
            },
            "color_on_device_times_the_reference_without_color": round(
                rates["ours_color_on_device"] / rates["reference_without_color"], 2
            ),
        }
    return figures


def works(folder: Path, jpegs: list[bytes]) -> dict[str, Callable[[int], int]]:
    """What is measured; each takes a turn's number and returns how many images it did."""
    import simplejpeg

    from components.images.loader import Loader, LoaderParams, Stream
    from components.learning.augment import AugmentParams, JitterParams, MultiCrop
    from components.learning.collate import collate, collate_bytes
    from perf.reference_augment import reference_batch

    params, dataset = AugmentParams(), as_dataset(folder, jpegs)
    demo = AugmentParams(global_size=64, local_size=32, locals=4, gray=True)
    cached = LoaderParams(cache_decoded=True, cache_side=144)
    stream = Stream(BATCH, 0)
    floats = iter(Loader(dataset, MultiCrop(params), stream, collate=functools.partial(collate, params=params)))
    quick = params.model_copy(update={"resize": "opencv"})
    aliased = iter(Loader(dataset, MultiCrop(quick), stream, collate=functools.partial(collate, params=params)))
    levels = iter(Loader(dataset, MultiCrop(params), stream, collate=collate_bytes))
    deferred = iter(Loader(dataset, MultiCrop(params, defer_color=True), stream, collate=collate_bytes))
    small = Loader(dataset, MultiCrop(demo), stream, collate=functools.partial(collate, params=demo), params=cached)
    for _ in range(-(-len(jpegs) // BATCH)):  # fill the cache
        next(small_batches := iter(small))

    def some(turn: int, count: int) -> list[bytes]:
        return [jpegs[(turn * count + i) % len(jpegs)] for i in range(count)]

    def reference(turn: int) -> int:
        reference_batch(some(turn, BATCH), params, random.Random(turn))
        return BATCH

    plain = params.model_copy(
        update={"jitter": JitterParams(probability=0), "grayscale": 0.0, "blur": (0, 0, 0), "solarize": (0, 0, 0)}
    )

    def reference_without_color(turn: int) -> int:
        reference_batch(some(turn, BATCH), plain, random.Random(turn))
        return BATCH

    def decoding(turn: int) -> int:
        for data in some(turn, BATCH):
            simplejpeg.decode_jpeg(data)
        return BATCH

    return {
        "reference": reference,
        "reference_without_color": reference_without_color,
        "ours": lambda _: len(next(floats).keys),
        "ours_uint8": lambda _: len(next(levels).keys),
        "ours_color_on_device": lambda _: len(next(deferred).keys),
        "ours_resize_opencv": lambda _: len(next(aliased).keys),
        "decoding_alone": decoding,
        "ours_demo_crops_cached": lambda _: len(next(small_batches).keys),
    }


def interleaved(todo: dict[str, Callable[[int], int]]) -> dict[str, float]:
    """Images per CPU second of each work: the best of rounds that take turns, the least disturbed by the machine."""
    for work in todo.values():
        work(0)
    rates: dict[str, list[float]] = {name: [] for name in todo}
    for turn in range(ROUNDS):
        for name, work in todo.items():
            start, done = time.process_time(), 0
            while done < (BATCH if name.startswith("reference") else IMAGES):
                done += work(turn)
            rates[name].append(done / (time.process_time() - start))
    return {name: max(values) for name, values in rates.items()}


def photographs() -> dict[str, list[bytes]]:
    """JPEG bytes by where they come from."""
    import simplejpeg
    import skimage.data

    natural = [np.array(getattr(skimage.data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")]
    coded = [simplejpeg.encode_jpeg(image, quality=85, colorsubsampling="420") for image in natural]
    found = {"skimage-300-to-512px": coded * 16}
    if SHARED.exists():
        import pyarrow.parquet as pq

        found[SHARED.stem] = pq.read_table(SHARED, columns=["image"])["image"].to_pylist()[:256]
    return found


def as_dataset(folder: Path, jpegs: list[bytes]) -> ManifestDataset:
    """The photographs as a curated set below ``folder``."""
    from components.images.loader import ManifestDataset
    from components.images.shards import Shards, ShardWriter
    from components.storage import StorageParams, open_store
    from components.tables.parts import write_table
    from components.tables.schemas import MANIFEST

    rows: list[dict[str, object]] = []
    with ShardWriter(open_store(str(folder / "shards")), "perf", 1 << 26) as writer:
        for number, data in enumerate(jpegs):
            at = writer.add(f"{number:06d}", "jpg", data)
            place = {"key": f"{number:06d}", "shard": at.shard, "offset": at.offset, "length": at.length}
            rows.append(place | {"width": 0, "height": 0, "weight": 1.0, "reason": "pool"})
    Shards("", writer.shards).save(folder)
    write_table(folder / "manifest", rows, MANIFEST)
    return ManifestDataset(folder, folder / "manifest", StorageParams(root=str(folder)))


if __name__ == "__main__":
    print(main())
