"""Parts that readers of masks and depths share: from lists of files to a :class:`DenseBenchmark`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.evaluation.sets.dense_files import IGNORE, depth_of, mask_of
from components.evaluation.sets.dense_set import DenseBenchmark, Truth
from components.evaluation.sets.labelled_set import Benchmark, ImageFiles
from components.text import read_text

EIGEN = (45, 471, 41, 601)  # rows and columns of 480 x 640 that Eigen et al. 2014 score
Paths = Sequence[Path]


def lines_of(path: Path, name: str) -> list[str]:
    """The lines of a list of the set ``name`` that hold something.

    Raises:
        VitrailError: no such file.
    """
    try:
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except FileNotFoundError:
        raise VitrailError(f"benchmark {name}: {path}: no such list of images") from None


def pictures_of(name: str, images: Paths, files: Paths, test: npt.NDArray[np.bool_]) -> Benchmark:
    """The images of the set ``name``, each with a file of ``files``, without labels.

    Raises:
        VitrailError: a file is missing.
    """
    missing = [path for path in (*images, *files) if not path.is_file()]
    if missing:
        raise VitrailError(f"benchmark {name}: {missing[0]}: no such file ({len(missing)} are missing)")
    keys = [f"{name}/{number:06d}" for number in range(len(images))]
    return Benchmark(name, keys, ImageFiles(images), {}, {}, test)


def segmentation_of(
    pictures: Benchmark, masks: Paths, names: list[str] | None, ignored: int, shift: int = 0
) -> DenseBenchmark:
    """Pictures with ``masks`` of class numbers, to which ``shift`` is added; ``ignored`` is no label."""

    def read(row: int) -> npt.NDArray[Any]:
        classes = mask_of(masks[row].read_bytes(), str(masks[row]))
        return np.where(classes == ignored, IGNORE, classes + shift)

    facts = f"ignore {ignored}, shift {shift}"
    truth = Truth("segmentation", _bytes(masks), read, _where(masks), names, facts=facts)
    return DenseBenchmark(pictures, truth)


def depths_of(
    pictures: Benchmark, files: Paths, per_metre: float, depths: tuple[float, float], eigen: bool = False
) -> DenseBenchmark:
    """Pictures with maps of depths in ``per_metre`` units; those within ``depths`` metres are scored.

    With ``eigen`` only Eigen's part of held-out pictures is.
    """

    def read(row: int) -> npt.NDArray[Any]:
        metres = depth_of(files[row].read_bytes(), str(files[row]), per_metre)
        return eigen_part(metres) if eigen and pictures.test[row] else metres

    facts = f"{per_metre} a metre, eigen {eigen}"
    truth = Truth("depth", _bytes(files), read, _where(files), depths=depths, facts=facts)
    return DenseBenchmark(pictures, truth)


def eigen_part(metres: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``metres`` [480, 640] with holes outside of the part that Eigen et al. score; of another size as they are."""
    if metres.shape != (480, 640):
        return metres
    top, bottom, left, right = EIGEN
    inside = np.zeros_like(metres, bool)
    inside[top:bottom, left:right] = True
    return np.where(inside, metres, np.float32(np.nan))


def _bytes(paths: Paths) -> Callable[[int], bytes]:
    return lambda row: paths[row].read_bytes()


def _where(paths: Paths) -> Callable[[int], str]:
    return lambda row: str(paths[row])
