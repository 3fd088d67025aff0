"""Pictures with a class at every pixel, for the dense probe: mosaics, a named set of masks, or the user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError, nearest
from components.evaluation.features.extract import square
from components.evaluation.sets.benchmarks import Benchmark
from components.evaluation.sets.dense_files import IGNORE, image_files, mask_of, numbers_of, pairs, same_size
from components.evaluation.sets.dense_set import DenseBenchmark
from components.images.decode import RGB, decode
from components.training.probe_params import (
    DenseFolderParams,
    DenseMosaicParams,
    DenseNamedParams,
    DenseParams,
    DenseParquetParams,
)

Mask = npt.NDArray[np.int16]
PictureReading = Callable[[], tuple[RGB, npt.NDArray[np.integer]]]  # reads one image and its mask


@dataclass(frozen=True)
class DenseSet:
    """n square pictures, those to fit on first."""

    name: str  # in the metrics' names
    images: npt.NDArray[np.uint8]  # [n, S, S, 3]
    masks: Mask  # [n, S, S], class numbers or IGNORE
    train: int  # pictures to fit on; the others are scored
    classes: int
    digest: str = field(default="")

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"{self.name} {self.images.shape} {self.train} {self.classes}".encode())
        digest.update(self.images.tobytes())
        digest.update(self.masks.tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())


@dataclass(frozen=True)
class MosaicPlan:
    """Which images are shown in which parts of which mosaic."""

    rows: npt.NDArray[np.int64]  # [n, 4] of the benchmark: upper left, upper right, lower left, lower right
    cuts: npt.NDArray[np.int64]  # [n, 2]: px from the top and from the left
    train: int  # mosaics to fit on, the first ones
    size: int  # px


def plan_mosaics(
    bank: Sequence[int], held_out: Sequence[int], params: DenseMosaicParams, size: int, seed: int
) -> MosaicPlan:
    """A draw of images, from ``bank`` for mosaics to fit on and from ``held_out`` for those to score, and of cuts.

    The two sides share no image. Cuts fall in the middle half.
    """
    generator = np.random.default_rng([seed, 0x30543])
    rows = [
        generator.choice(side, 4, replace=len(side) < 4)
        for side, count in ((np.asarray(bank), params.train), (np.asarray(held_out), params.held_out))
        for _ in range(count)
    ]
    cuts = generator.integers(size // 4, size - size // 4 + 1, (len(rows), 2))
    return MosaicPlan(np.stack(rows), cuts, params.train, size)


def mosaics(benchmark: Benchmark, task: str, plan: MosaicPlan, squares: Mapping[int, RGB]) -> DenseSet:
    """The mosaics: each part shows that part of another image, and a pixel's class is the label of its image.

    What is asked of a patch is what it shows, not what the picture as a whole does. (Mosaics of textures are a classic
    of segmentation; the labels are real, the borders are made.)

    Args:
        task: label set of the benchmark.
        squares: the plan's images by row, ``plan.size`` px.
    """
    count, size, labels = len(plan.rows), plan.size, benchmark.labels[task]
    images, masks = np.empty((count, size, size, 3), np.uint8), np.empty((count, size, size), np.int16)
    for number, (rows, (down, across)) in enumerate(zip(plan.rows.tolist(), plan.cuts.tolist(), strict=True)):
        for part, row in enumerate(rows):
            where = (
                slice(0, down) if part < 2 else slice(down, size),
                slice(0, across) if part % 2 == 0 else slice(across, size),
            )
            images[number][where] = squares[row][where]
            masks[number][where] = labels[row]
    return DenseSet(f"{benchmark.name}/{task}-mosaic", images, masks, plan.train, len(benchmark.class_names[task]))


def own_masks(params: DenseFolderParams | DenseParquetParams, size: int, seed: int) -> DenseSet:
    """The user's images and masks, their centre squares at ``size`` px; drawn and divided by ``seed``.

    Raises:
        VitrailError: files or columns are missing, or an image has no mask, or one that does not fit it.
    """
    sources, where = _folder(params) if isinstance(params, DenseFolderParams) else _parquet(params)
    return _drawn(params, (sources, where), (params.name, params.ignore), size, seed)


def named_masks(params: DenseNamedParams, pictures: DenseBenchmark, size: int, seed: int) -> DenseSet:
    """The same of a benchmark's training side; its held-out pictures are never read.

    Raises:
        VitrailError: a file cannot be read, or a mask does not fit its picture.
    """

    def source(row: int) -> PictureReading:
        return lambda: pictures.read(row)

    sources = [source(row) for row in pictures.train_rows.tolist()]
    return _drawn(params, (sources, pictures.name), (pictures.name, IGNORE), size, seed)


def _drawn(
    params: DenseParams, where: tuple[list[PictureReading], str], named: tuple[str, int], size: int, seed: int
) -> DenseSet:
    """A draw of the sources, divided; ``named`` is the set's name and the value without a label."""
    (sources, place), (name, ignore) = where, named
    wanted = params.train + params.held_out
    if len(sources) < 2:
        raise VitrailError(f"probe.dense: {place}: {len(sources)} images with masks; at least 2 are needed")
    order = np.random.default_rng([seed, 0x30543]).permutation(len(sources))[:wanted]
    # Small sets are cut in the asked proportion.
    train = min(len(order) - 1, max(1, round(len(order) * params.train / wanted)))
    images, masks = [], []
    for number in order:
        rgb, mask = sources[number]()
        images.append(square(rgb, size))
        masks.append(_square_mask(mask, size))
    classes = np.stack(masks).astype(np.int64)
    classes[classes == ignore] = IGNORE
    if (classes < IGNORE).any() or classes.max() > np.iinfo(np.int16).max:
        raise VitrailError(f"probe.dense: {place}: class numbers must be 0 to 32767 (and {ignore}: no label)")
    count = int(classes.max()) + 1
    return DenseSet(name, np.stack(images), classes.astype(np.int16), train, max(1, count))


def _square_mask(mask: npt.NDArray[np.integer], size: int) -> npt.NDArray[np.integer]:
    """The centre square at ``size`` x ``size``, each pixel the nearest one's class, cut as :func:`square` cuts."""
    height, width = mask.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    at = np.minimum(((np.arange(size) + 0.5) * side / size).astype(int), side - 1)
    found: npt.NDArray[np.integer] = mask[top + at][:, left + at]
    return found


def _folder(params: DenseFolderParams) -> tuple[list[PictureReading], str]:
    folder = Path(params.images)
    masks = pairs(folder, Path(params.masks), ("probe.dense.images", "probe.dense.masks"))
    both = zip(image_files(folder), masks, strict=True)
    return [_source(a.read_bytes, b.read_bytes, str(a), str(b)) for a, b in both], params.images


def _parquet(params: DenseParquetParams) -> tuple[list[PictureReading], str]:
    import pyarrow.parquet as pq

    from components.tables.schemas import PARQUET_FAULTS

    where = f"probe.dense.path: {params.path}"
    try:
        known = pq.read_schema(params.path).names
        for column in (params.image, params.mask):
            if column not in known:
                raise VitrailError(f"{where}: no column {column!r}{nearest(column, known)}")
        table = pq.read_table(params.path, columns=[params.image, params.mask], memory_map=True)
    except FileNotFoundError:
        raise VitrailError(f"{where}: no such file") from None
    except PARQUET_FAULTS as fault:
        raise VitrailError(f"{where}: not a readable Parquet file ({fault})") from None

    def reader(column: str, row: int) -> Callable[[], Any]:
        def read() -> Any:
            value = table[column][row].as_py()
            return value.get("bytes") if isinstance(value, dict) else value

        return read

    names = [
        (f"{params.path}, row {row}, {params.image}", f"{params.path}, row {row}, {params.mask}", row)
        for row in range(len(table))
    ]
    return [_source(reader(params.image, row), reader(params.mask, row), a, b) for a, b, row in names], params.path


def _source(image: Callable[[], Any], mask: Callable[[], Any], image_at: str, mask_at: str) -> PictureReading:
    def read() -> tuple[RGB, npt.NDArray[np.integer]]:
        rgb: RGB = numbers_of(image(), image_at, decode)
        classes = mask_of(mask(), mask_at)
        same_size(classes, rgb, mask_at, "mask")
        return rgb, classes

    return read
