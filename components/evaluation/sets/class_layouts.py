"""Layouts of images with a class each (``params/benchmarks.yaml``): folders, ImageNet's, tar shards, Hugging Face's.

You download a data set, and its licence is yours to keep: ImageNet's images are for research that is not commercial.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from components.errors import VitrailError
from components.evaluation.sets.dense_files import IMAGES
from components.evaluation.sets.hf_folder import DatasetsParams, read_datasets
from components.evaluation.sets.labelled_set import Benchmark, ImageFiles, Images
from components.evaluation.sets.tar_set import read_tar
from components.evaluation.statistics.selection import divide
from components.input_paths import InputPath
from components.params import Seed, Strict

HeldOutShare = Annotated[float, Field(gt=0, lt=1)]
ENDINGS = (*IMAGES, ".gif", ".heic", ".avif")
SOLUTION = "LOC_val_solution.csv"  # the validation images' classes, as Kaggle ships them


class FolderParams(Strict):
    """A folder of images for each class."""

    kind: Literal["folder"]
    path: InputPath  # holds a folder a class
    test: InputPath | None = None  # likewise, the held-out images; null: a share of each class of `path`
    held_out: HeldOutShare = 0.2  # without `test`
    seed: Seed = 0


class ImageNetParams(Strict):
    """ILSVRC 2012: ``train/n01440764/*.JPEG``, and ``val`` likewise or flat with ``LOC_val_solution.csv`` beside it."""

    kind: Literal["imagenet"]
    path: InputPath


class TarParams(Strict):
    """Tar shards as WebDataset has them: ``KEY.jpg`` and ``KEY.cls``, a class number or name."""

    kind: Literal["tar"]
    path: InputPath  # folder of *.tar
    test: InputPath | None = None  # likewise, the held-out images; null: a share of each class of `path`
    held_out: HeldOutShare = 0.2  # without `test`
    seed: Seed = 0


class Side(NamedTuple):
    """Images and their classes by name."""

    images: list[Any]
    classes: list[str]


def read_folder(name: str, params: FolderParams) -> Benchmark:
    """Both sides of a folder of classes."""
    train = class_folders(Path(params.path), name)
    test = None if params.test is None else class_folders(Path(params.test), name)
    files = ImageFiles([*train.images, *(test.images if test else [])])
    return _benchmark(name, files, train.classes, test.classes if test else None, (params.held_out, params.seed))


def read_imagenet(name: str, params: ImageNetParams) -> Benchmark:
    """ImageNet's training and validation images."""
    root = Path(params.path)
    train, val = class_folders(root / "train", name), root / "val"
    if not val.is_dir():
        raise VitrailError(f"benchmark {name}: {val}: no such folder")
    test = class_folders(val, name) if any(path.is_dir() for path in val.iterdir()) else _flat(val, name)
    return _benchmark(name, ImageFiles([*train.images, *test.images]), train.classes, test.classes, (0.0, 0))


def read_tar_shards(name: str, params: TarParams) -> Benchmark:
    """Both sides of tar shards."""
    train, classes = read_tar(Path(params.path), name)
    if params.test is None:
        return _benchmark(name, train, classes, None, (params.held_out, params.seed))
    test, known = read_tar(Path(params.test), name)
    return _benchmark(name, train.with_more(test), classes, known, (0.0, 0))


def read_hf(name: str, params: DatasetsParams) -> Benchmark:
    """A folder of Hugging Face's ``datasets``."""
    train, test = read_datasets(name, params)
    images = train.images if test is None else train.images.with_more(test.images)
    known = None if test is None else test.classes
    return _benchmark(name, images, train.classes, known, (params.held_out, params.seed), params.label)


def class_folders(root: Path, name: str) -> Side:
    """The images below ``root``, whose folders are the classes, in the order of their names.

    Raises:
        VitrailError: no such folder, or no image in folders of classes.
    """
    if not root.is_dir():
        raise VitrailError(f"benchmark {name}: {root}: no such folder")
    found = [
        (path, folder.name)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in ENDINGS and path.is_file()
    ]
    if not found:
        raise VitrailError(f"benchmark {name}: {root}: no images in folders of classes, as in {root}/CLASS/1.jpg")
    return Side([path for path, _ in found], [kind for _, kind in found])


def _flat(val: Path, name: str) -> Side:
    solution = val.parent / SOLUTION
    if not solution.is_file():
        raise VitrailError(
            f"benchmark {name}: {val} holds no folders of classes, and {solution} is not there: it names the classes "
            "of the validation images. Sort them into folders, or bring the file"
        )
    with solution.open(newline="") as file:
        classes = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    paths = sorted(path for path in val.iterdir() if path.suffix.lower() in ENDINGS)
    if missing := [path for path in paths if path.stem not in classes]:
        raise VitrailError(f"benchmark {name}: {solution}: no class of {missing[0].name} ({len(missing)} are missing)")
    return Side(list(paths), [classes[path.stem] for path in paths])


def _benchmark(
    name: str,
    images: Images,
    train: Sequence[str],
    test: Sequence[str] | None,
    drawn: tuple[float, int],
    task: str = "class",
) -> Benchmark:
    """One task; ``drawn`` is the share that is held out where there is no test side, and the draw's seed."""
    every = [*train, *(test or [])]
    names = sorted(set(every))
    numbers = {one: number for number, one in enumerate(names)}
    labels = np.array([numbers[one] for one in every], np.int64)
    held: npt.NDArray[np.bool_] = np.arange(len(every)) >= len(train)
    if test is None:
        held = divide(labels, *drawn)
    elif absent := sorted(set(test) - set(train)):
        raise VitrailError(
            f"benchmark {name}: {len(absent)} classes of the held-out images have no training image, {absent[0]!r} "
            "among them; they can never be right: take them out, or bring training images"
        )
    keys = [f"{name}/{row:07d}" for row in range(len(every))]
    return Benchmark(name, keys, images, {task: labels}, {task: names}, held)
