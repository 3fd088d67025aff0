"""Sets that test what a classifier keeps on other pictures of the same classes: ImageNet-A, -R, -Sketch, -C.

Their images are all held out. A classifier is fitted on the training side of the benchmark they belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from components.errors import VitrailError, nearest
from components.evaluation.sets.class_layouts import Side, class_folders
from components.evaluation.sets.labelled_set import Benchmark, ImageFiles
from components.evaluation.statistics.corruptions import GROUPS, check_complete
from components.input_paths import InputPath
from components.params import Strict


class RobustnessParams(Strict):
    """A folder of images for each class; with corruptions ``CORRUPTION/SEVERITY/CLASS``, or below a group."""

    kind: Literal["robustness"]
    of: str  # benchmark whose classes these are
    path: InputPath
    layout: Literal["classes", "corruptions"] = "classes"
    task: str | None = None  # of `of`; null: its first
    names: dict[str, str] = {}  # folder -> class of `of`, where they differ
    reference: Literal["alexnet"] | None = None  # whose published errors on ImageNet-C mCE divides by; null: no mCE

    @model_validator(mode="after")
    def _only_with_corruptions(self) -> RobustnessParams:
        if self.reference is not None and self.layout != "corruptions":
            raise ValueError("reference: only `layout: corruptions` has a mean corruption error")
        return self


@dataclass(frozen=True)
class RobustSet:
    """m images of some of the classes of another benchmark."""

    pictures: Benchmark  # all held out; one task
    task: str
    allowed: npt.NDArray[np.int64]  # class numbers of the benchmark that the set has, rising
    corruptions: list[tuple[str, str]] | None = None  # of each image: what and how severe; None: of no such set
    mce: bool = False  # whether the mean corruption error is asked for


def read_robustness(name: str, params: RobustnessParams) -> Benchmark:
    """The images alone, all held out, without labels."""
    images = _images(name, params)[0].images
    return Benchmark(
        name, _keys(name, len(images)), ImageFiles(images), {}, {}, np.ones(len(images), bool), held_out_only=True
    )


def load_robustness(name: str, params: RobustnessParams, of: Benchmark) -> RobustSet:
    """The set with the class numbers of ``of``.

    Raises:
        VitrailError: a folder is no class of ``of``, or there is no such task.
    """
    task = next(iter(of.labels)) if params.task is None else params.task
    if task not in of.labels:
        raise VitrailError(f"benchmark {name}: task {task!r} is none of {of.name}{nearest(task, list(of.labels))}")
    side, corruptions = _images(name, params)
    known = {one: number for number, one in enumerate(of.class_names[task])}
    for folder in dict.fromkeys(side.classes):
        if params.names.get(folder, folder) not in known:
            shown = params.names.get(folder, folder)
            raise VitrailError(
                f"benchmark {name}: {params.path}: {shown!r} is no class of {of.name}{nearest(shown, list(known))}; "
                "name its class under `names`, or take the folder out"
            )
    labels = np.array([known[params.names.get(folder, folder)] for folder in side.classes], np.int64)
    test = np.ones(len(labels), bool)
    names = {task: of.class_names[task]}
    keys = _keys(name, len(labels))
    pictures = Benchmark(name, keys, ImageFiles(side.images), {task: labels}, names, test, held_out_only=True)
    if corruptions is not None and params.reference is not None:
        check_complete(name, corruptions)
    return RobustSet(pictures, task, np.unique(labels), corruptions, params.reference is not None)


def _keys(name: str, count: int) -> list[str]:
    return [f"{name}/{row:07d}" for row in range(count)]


def _images(name: str, params: RobustnessParams) -> tuple[Side, list[tuple[str, str]] | None]:
    root = Path(params.path)
    if params.layout == "classes":
        return class_folders(root, name), None
    found, corruptions = Side([], []), []
    # As ImageNet-C's archives unpack, below a folder a group, or without it.
    inside = [sorted(top.glob("*/*" if _is_group(top) else "*")) for top in sorted(root.glob("*"))]
    folders = [path for paths in inside for path in paths if path.is_dir()]
    if not folders:
        raise VitrailError(f"benchmark {name}: {root}: no folders CORRUPTION/SEVERITY, as in {root}/fog/3")
    for folder in folders:
        side = class_folders(folder, name)
        found.images.extend(side.images)
        found.classes.extend(side.classes)
        corruptions += [(folder.parent.name, folder.name)] * len(side.images)
    return found, corruptions


def _is_group(folder: Path) -> bool:
    """Whether ``folder`` is a group of ImageNet-C (``noise/shot_noise/1/red``), not a corruption of that name."""
    return folder.name in GROUPS and any(path.is_dir() for path in folder.glob("*/*/*"))
