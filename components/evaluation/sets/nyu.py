"""NYU Depth v2 (Silberman et al. 2012): the labelled set's .mat file, or lists of images and maps of depths."""

from __future__ import annotations

import io
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.evaluation.sets.dense_pictures import depths_of, eigen_part, lines_of, pictures_of
from components.evaluation.sets.dense_set import DenseBenchmark, Truth
from components.evaluation.sets.labelled_set import Benchmark
from components.images.decode import RGB
from components.input_paths import InputPath
from components.params import Strict

SPAN = (1e-3, 10.0)  # metres that are scored
FIELDS = {"raw": "rawDepths", "filled": "depths"}


class NyuParams(Strict):
    """NYU Depth v2: ``nyu_depth_v2_labeled.mat`` with ``splits.mat``, or a folder with ``nyu_train.txt`` and so on.

    The lists name an image and a PNG of depths in millimetres a line.
    """

    kind: Literal["nyu"]
    path: InputPath  # the .mat file of MATLAB 7.3, or the folder of the lists
    splits: InputPath | None = None  # of the .mat file: trainNdxs and testNdxs; null: splits.mat beside it
    depths: Literal["raw", "filled"] = "raw"  # of the .mat file: as measured, with holes, or with holes filled in
    crop: Literal["eigen", "none"] = "eigen"  # of 480 x 640 px: what is scored


def read_nyu(name: str, params: NyuParams) -> DenseBenchmark:
    """The pictures of both sides.

    Raises:
        VitrailError: a file is missing or not as described.
    """
    path = Path(params.path)
    return _from_mat(name, path, params) if path.suffix == ".mat" else _from_lists(name, path, params)


def _from_lists(name: str, root: Path, params: NyuParams) -> DenseBenchmark:
    images, depths, sides = [], [], []
    for side in ("train", "test"):
        for number, line in enumerate(lines_of(root / f"nyu_{side}.txt", name), 1):
            words = line.split()
            if len(words) < 2:
                raise VitrailError(
                    f"benchmark {name}: {root}/nyu_{side}.txt, line {number}: an image and its map of depths are "
                    f"expected, found {line!r}"
                )
            if words[1] == "None":  # the lists' word for an image without depth
                continue
            images.append(root / words[0].lstrip("/"))
            depths.append(root / words[1].lstrip("/"))
            sides.append(side == "test")
    shown = pictures_of(name, images, depths, np.array(sides, bool))
    return depths_of(shown, depths, 1000.0, SPAN, params.crop == "eigen")


def _from_mat(name: str, path: Path, params: NyuParams) -> DenseBenchmark:
    field = FIELDS[params.depths]
    file = _Mat(path, name)
    images, depths = (file.array(key, dimensions) for key, dimensions in (("images", 4), (field, 3)))
    if len(images) != len(depths) or images.shape[2:] != depths.shape[1:]:
        raise VitrailError(f"benchmark {name}: {path}: images {images.shape} and {field} {depths.shape} do not fit")
    rows, test = _sides(name, Path(params.splits or path.with_name("splits.mat")), len(images))

    def read(row: int) -> npt.NDArray[Any]:
        metres = np.asarray(file.array(field, 3)[rows[row]], np.float32).T
        metres = np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(np.nan))
        return eigen_part(metres) if params.crop == "eigen" and test[row] else metres

    keys = [f"{name}/{number + 1:06d}" for number in rows]
    pictures = Benchmark(name, keys, _MatPictures(file, rows), {}, {}, test)
    truth = Truth(
        "depth",
        lambda row: np.ascontiguousarray(file.array(field, 3)[rows[row]]).tobytes(),
        read,
        lambda row: f"{path}, {field} {rows[row] + 1}",
        depths=SPAN,
        facts=f"{field}, eigen {params.crop == 'eigen'}",
    )
    return DenseBenchmark(pictures, truth)


class _Mat:
    """A file of MATLAB 7.3, which is HDF5; an array's axes are in the opposite order of MATLAB's."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self._name = path, name

    @cached_property
    def _file(self) -> Any:
        import h5py

        try:
            return h5py.File(self.path, "r")
        except FileNotFoundError:
            raise VitrailError(f"benchmark {self._name}: {self.path}: no such file") from None
        except OSError as fault:
            raise VitrailError(f"benchmark {self._name}: {self.path}: not a file of MATLAB 7.3 ({fault})") from None

    def array(self, key: str, dimensions: int) -> Any:
        """The array ``key``, unread."""
        found = self._file.get(key)
        if found is None or len(getattr(found, "shape", ())) != dimensions:
            raise VitrailError(f"benchmark {self._name}: {self.path}: no array {key!r} of {dimensions} dimensions")
        return found


class _MatPictures:
    """Pictures of the array ``images`` [n, 3, W, H], as :class:`components.evaluation.sets.labelled_set.Images`."""

    def __init__(self, file: _Mat, rows: npt.NDArray[np.int64]) -> None:
        self._file, self._rows = file, rows

    def __len__(self) -> int:
        return len(self._rows)

    def rgb(self, row: int) -> RGB:
        """Picture ``row``, uint8 [H, W, 3]."""
        return np.ascontiguousarray(
            np.asarray(self._file.array("images", 4)[self._rows[row]], np.uint8).transpose(2, 1, 0)
        )

    def bytes(self, row: int) -> bytes:
        """The picture as a PNG: the file holds pixels, and what reads images reads files."""
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(self.rgb(row)).save(out, "PNG", compress_level=1)
        return out.getvalue()


def _sides(name: str, splits: Path, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Rows of the training side, then of the test side; and which of them are held out."""
    from scipy.io import loadmat

    try:
        content = loadmat(str(splits))
        train, test = (np.asarray(content[key], np.int64).ravel() - 1 for key in ("trainNdxs", "testNdxs"))
    except FileNotFoundError:
        raise VitrailError(
            f"benchmark {name}: {splits}: no such file; it names the sides (trainNdxs, testNdxs) and comes with the set"
        ) from None
    except (KeyError, ValueError, TypeError, NotImplementedError) as fault:
        raise VitrailError(f"benchmark {name}: {splits}: no trainNdxs and testNdxs to read ({fault})") from None
    rows = np.concatenate([train, test])
    outside = rows[(rows < 0) | (rows >= count)]
    if len(outside):
        raise VitrailError(f"benchmark {name}: {splits} names picture {outside[0] + 1} of {count}")
    return rows, np.arange(len(rows)) >= len(train)
