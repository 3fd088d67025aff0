"""Layouts of data sets with masks or depths (``params/benchmarks.yaml``): the user's own folders, and official ones.

You download a data set, and its licence is yours to keep. ADE20K's images are for research; VOC's are Flickr's; NYU
and CamVid state no licence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field

from components.errors import VitrailError
from components.evaluation.sets.camvid import CamVidParams, read_camvid
from components.evaluation.sets.dense_files import image_files, pairs
from components.evaluation.sets.dense_pictures import Paths, depths_of, lines_of, pictures_of, segmentation_of
from components.evaluation.sets.dense_set import DenseBenchmark
from components.evaluation.sets.labelled_set import held_out_by_seed
from components.evaluation.sets.nyu import NyuParams, read_nyu
from components.input_paths import InputPath
from components.params import Seed, Share, Strict

VOC = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip

Metres = Annotated[float, Field(gt=0, le=1e6)]


class OwnDense(Strict):
    """The user's images and files of equal stem. Without a test folder a share is held out by seed."""

    images: InputPath  # folder
    test_images: InputPath | None = None
    held_out: Share = 0.2  # without `test_images`
    seed: Seed = 0


class MaskSetParams(OwnDense):
    """Masks are PNGs of class numbers."""

    kind: Literal["masks"]
    masks: InputPath  # folder
    test_masks: InputPath | None = None
    classes: list[str] | None = None  # names of the numbers 0, 1, ...; null: as many as the masks show
    ignore: int = Field(255, ge=0, le=65_535)  # mask value without a label


class DepthSetParams(OwnDense):
    """Depths are PNGs of whole numbers, or ``.npy`` files. Zero, negative, NaN and infinite values are holes."""

    kind: Literal["depths"]
    depths: InputPath  # folder
    test_depths: InputPath | None = None
    per_metre: float = Field(1000.0, gt=0, le=1e9)  # the files' units in a metre
    least: Metres = 1e-3  # metres; nearer pixels are not scored
    most: Metres = 10.0  # metres; farther pixels are not scored


class Ade20kParams(Strict):
    """SceneParsing's release of ADE20K: ``images/training``, ``annotations/validation``. 0 is no label, 150 classes."""

    kind: Literal["ade20k"]
    path: InputPath  # ADEChallengeData2016


class VocParams(Strict):
    """VOC 2012: ``JPEGImages``, ``SegmentationClass``, ``ImageSets/Segmentation/{train,val}.txt``; 255 is no label."""

    kind: Literal["voc"]
    path: InputPath  # VOC2012, or the VOCdevkit above it
    train: str = "train"  # lists in ImageSets/Segmentation
    test: str = "val"


DenseSetParams = MaskSetParams | DepthSetParams | Ade20kParams | VocParams | CamVidParams | NyuParams
DENSE = get_args(DenseSetParams)


def load_dense(name: str, params: DenseSetParams) -> DenseBenchmark:
    """The pictures that ``params`` describe, unread.

    Raises:
        VitrailError: a folder, list or file is missing.
    """
    readers: dict[str, Callable[[str, Any], DenseBenchmark]] = {
        "masks": _masks, "depths": _depths, "ade20k": _ade20k, "voc": _voc, "camvid": read_camvid, "nyu": read_nyu
    }  # fmt: skip
    return readers[params.kind](name, params)


def _own(
    name: str, params: MaskSetParams | DepthSetParams, endings: Sequence[str]
) -> tuple[Paths, Paths, npt.NDArray[Any]]:
    """Images, their files, and which are held out."""
    key, test_key = ("masks", "test_masks") if isinstance(params, MaskSetParams) else ("depths", "test_depths")
    where = f"benchmark {name}: "
    images, files = Path(params.images), Path(getattr(params, key))
    others = pairs(images, files, (f"{where}images", f"{where}{key}"), endings)
    found, test_files = image_files(images), getattr(params, test_key)
    if (params.test_images is None) != (test_files is None):
        raise VitrailError(f"{where}test_images and {test_key} go together: give both or none")
    if params.test_images is None:
        return found, others, held_out_by_seed(len(found), params.held_out, params.seed)
    theirs = pairs(Path(params.test_images), Path(test_files), (f"{where}test_images", f"{where}{test_key}"), endings)
    shown = image_files(Path(params.test_images))
    return [*found, *shown], [*others, *theirs], np.arange(len(found) + len(shown)) >= len(found)


def _masks(name: str, params: MaskSetParams) -> DenseBenchmark:
    images, masks, test = _own(name, params, (".png",))
    return segmentation_of(pictures_of(name, images, masks, test), masks, params.classes, params.ignore)


def _depths(name: str, params: DepthSetParams) -> DenseBenchmark:
    images, files, test = _own(name, params, (".png", ".npy"))
    if params.least >= params.most:
        raise VitrailError(f"benchmark {name}: least {params.least:g} m must be below most {params.most:g} m")
    return depths_of(pictures_of(name, images, files, test), files, params.per_metre, (params.least, params.most))


def _ade20k(name: str, params: Ade20kParams) -> DenseBenchmark:
    images, masks, sides = [], [], []
    for side in ("training", "validation"):
        folder, annotations = (Path(params.path) / part / side for part in ("images", "annotations"))
        masks += pairs(folder, annotations, (f"benchmark {name}", f"benchmark {name}"))
        found = image_files(folder)
        images += found
        sides += [side == "validation"] * len(found)
    names = [f"class {number}" for number in range(1, 151)]
    return segmentation_of(pictures_of(name, images, masks, np.array(sides, bool)), masks, names, 0, shift=-1)


def _voc(name: str, params: VocParams) -> DenseBenchmark:
    root = Path(params.path)
    root = next((one for one in (root, root / "VOC2012") if (one / "JPEGImages").is_dir()), root)
    images, masks, sides = [], [], []
    for side in (params.train, params.test):
        stems = lines_of(root / "ImageSets" / "Segmentation" / f"{side}.txt", name)
        images += [root / "JPEGImages" / f"{stem}.jpg" for stem in stems]
        masks += [root / "SegmentationClass" / f"{stem}.png" for stem in stems]
        sides += [side == params.test] * len(stems)
    return segmentation_of(pictures_of(name, images, masks, np.array(sides, bool)), masks, VOC, 255)
