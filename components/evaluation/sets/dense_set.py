"""Pictures with a class or a depth at every pixel, and a held-out side: what every dense layout is read into."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.evaluation.sets.dense_files import IGNORE, same_size
from components.evaluation.sets.labelled_set import Benchmark
from components.images.decode import RGB
from components.params import fingerprint


@dataclass(frozen=True)
class Truth:
    """What is known at the pixels of n pictures, read when asked for."""

    kind: Literal["segmentation", "depth"]
    bytes: Callable[[int], bytes]  # the file of a row
    read: Callable[[int], npt.NDArray[Any]]  # [H, W]: class numbers or IGNORE; or metres, NaN where there is a hole
    where: Callable[[int], str]  # names the file in messages
    class_names: list[str] | None = None  # of segmentation; None: as many as the masks show
    depths: tuple[float, float] = (1e-3, 10.0)  # of depth: the least and the most metres that are scored
    facts: str = ""  # what else decides the values, for the digest


@dataclass(frozen=True)
class DenseBenchmark:
    """n pictures with what is known at their pixels."""

    pictures: Benchmark  # without labels
    truth: Truth

    @property
    def name(self) -> str:
        """In the metrics' names."""
        return self.pictures.name

    @cached_property
    def classes(self) -> int:
        """How many classes there are; without names all masks are read to see."""
        if self.truth.class_names is not None:
            return len(self.truth.class_names)
        rows = range(len(self.pictures.keys))
        return 1 + max((int(self.truth.read(row).max(initial=IGNORE)) for row in rows), default=IGNORE)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over everything a score depends on. The first access reads every file."""
        rows = range(len(self.pictures.keys))
        files = [hashlib.sha256(self.truth.bytes(row)).hexdigest() for row in rows]
        about = [self.truth.kind, self.truth.class_names, list(self.truth.depths), self.truth.facts]
        return fingerprint([self.pictures.digest, files, about])

    def read(self, row: int) -> tuple[RGB, npt.NDArray[Any]]:
        """Picture ``row`` and what is known at its pixels.

        Raises:
            VitrailError: a file cannot be read, sizes differ, or a class has no name.
        """
        rgb, values, where = self.pictures.images.rgb(row), self.truth.read(row), self.truth.where(row)
        same_size(values, rgb, where, "mask" if self.truth.kind == "segmentation" else "map of depths")
        if self.truth.kind == "segmentation":
            # Without names every number is a class: other masks need not be read to see it.
            most = np.inf if self.truth.class_names is None else len(self.truth.class_names) - 1
            if not IGNORE <= values.min() <= values.max() <= most:
                worst = int(values.max()) if values.max() > most else int(values.min())
                known = "0 and more" if self.truth.class_names is None else f"0 to {most}"
                raise VitrailError(
                    f"{where}: class {worst}, and {self.name} has classes {known}; name all classes, or set the value "
                    "that has no label"
                )
        return rgb, values

    @property
    def train_rows(self) -> npt.NDArray[np.int64]:
        """Rows to fit on."""
        return np.flatnonzero(~self.pictures.test)

    @property
    def test_rows(self) -> npt.NDArray[np.int64]:
        """Rows to score."""
        return np.flatnonzero(self.pictures.test)
