"""CamVid (Brostow et al. 2009): class numbers as SegNet's authors ship it, or masks by colour as its own authors do."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError, nearest
from components.evaluation.sets.dense_files import IGNORE, image_files, mask_of, numbers_of, pairs
from components.evaluation.sets.dense_pictures import Paths, lines_of, pictures_of
from components.evaluation.sets.dense_set import DenseBenchmark, Truth
from components.input_paths import InputPath
from components.params import Strict
from components.text import read_text

CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
VOID = 11  # the class number without a label in SegNet's masks
# The eleven classes that results are reported for, and the classes of the original that each takes in; Void in none.
GROUPED = {
    "sky": ["Sky"], "building": ["Archway", "Bridge", "Building", "Tunnel", "Wall"],
    "pole": ["Column_Pole", "TrafficCone"], "road": ["LaneMkgsDriv", "LaneMkgsNonDriv", "Road"],
    "pavement": ["ParkingBlock", "RoadShoulder", "Sidewalk"], "tree": ["Tree", "VegetationMisc"],
    "sign": ["Misc_Text", "SignSymbol", "TrafficLight"], "fence": ["Fence"],
    "car": ["Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"],
    "pedestrian": ["Animal", "CartLuggagePram", "Child", "Pedestrian"], "bicyclist": ["Bicyclist", "MotorcycleScooter"],
}  # fmt: skip
COLOURS = ("class_dict.csv", "label_colors.txt")  # what names the colours, the first that is there
Colour = tuple[int, int, int]


class CamVidParams(Strict):
    """CamVid by one of three layouts, told apart by what is there.

    SegNet's: ``train`` with ``trainannot``, ``test`` with ``testannot``, class numbers, 11 is no label. Colours:
    ``train`` with ``train_labels/NAME_L.png``, ``test`` likewise, and ``class_dict.csv``. The original:
    ``701_StillsRaw_full``, ``LabeledApproved_full/NAME_L.png``, ``label_colors.txt``, and lists ``train.txt`` and
    ``test.txt`` of names, since it names no sides itself.
    """

    kind: Literal["camvid"]
    path: InputPath
    classes: Literal[11, "all"] = 11  # the eleven of most results, or every class of the colours' file but Void


def read_camvid(name: str, params: CamVidParams) -> DenseBenchmark:
    """The pictures of both sides.

    Raises:
        VitrailError: the folder has none of the three layouts, or a file is missing.
    """
    root = Path(params.path)
    if (root / "trainannot").is_dir():
        if params.classes != 11:
            raise VitrailError(f"benchmark {name}: {root}: masks of class numbers have the 11 classes alone")
        images, masks, test = _sides(name, root, "annot", "")
        return _read(name, (images, masks, test), lambda row: _numbers(masks[row]), CAMVID)
    listed = next((root / one for one in COLOURS if (root / one).is_file()), None)
    if listed is None:
        raise VitrailError(f"benchmark {name}: {root}: neither trainannot nor {' nor '.join(COLOURS)} is there")
    names, colours = classes_of(listed, params.classes)
    original = (root / "LabeledApproved_full").is_dir()
    images, masks, test = _original(name, root) if original else _sides(name, root, "_labels", "_L")
    return _read(name, (images, masks, test), lambda row: by_colour(masks[row], colours, listed), names)


def classes_of(listed: Path, wanted: int | str) -> tuple[list[str], dict[Colour, int]]:
    """The names of the classes, and colour -> class number or IGNORE, of ``class_dict.csv`` or ``label_colors.txt``.

    Raises:
        VitrailError: the file cannot be read, or names a class that none of the eleven takes in.
    """
    found = dict(_named(listed))
    if wanted == "all":
        names = [one for one in found if one.lower() != "void"]
        return names, {colour: names.index(one) if one in names else IGNORE for one, colour in found.items()}
    group = {member: number for number, members in enumerate(GROUPED.values()) for member in members} | {"Void": IGNORE}
    for one in found:
        if one not in group:
            raise VitrailError(
                f"{listed}: {one!r} is no class of CamVid{nearest(one, list(group))}; or set classes: all"
            )
    return list(GROUPED), {colour: group[one] for one, colour in found.items()}


def by_colour(path: Path, colours: Mapping[Colour, int], listed: Path) -> npt.NDArray[np.int64]:
    """The class numbers [H, W] of a mask whose colours name the classes.

    Raises:
        VitrailError: it cannot be read, has no colours, or one that ``listed`` does not name.
    """
    values = numbers_of(path.read_bytes(), str(path))
    if values.ndim != 3 or values.shape[2] < 3:
        raise VitrailError(f"{path}: a mask by colour has three channels, this file has one")
    codes = values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]
    shown, where = np.unique(codes, return_inverse=True)
    table = {r << 16 | g << 8 | b: number for (r, g, b), number in colours.items()}
    for code in shown.tolist():
        if code not in table:
            colour = code >> 16, code >> 8 & 255, code & 255
            raise VitrailError(f"{path}: {int((codes == code).sum())} pixels of colour {colour}, which {listed} lacks")
    classes: npt.NDArray[np.int64] = np.array([table[code] for code in shown.tolist()], np.int64)[where]
    return classes.reshape(codes.shape)


def _named(listed: Path) -> list[tuple[str, Colour]]:
    text = read_text(listed)
    if listed.suffix == ".csv":
        rows = [[row[key] for key in ("name", "r", "g", "b")] for row in _table(text, listed)]
    else:
        words = [line.split() for line in text.splitlines() if line.strip()]
        rows = [[one[-1], *one[:3]] for one in words]
    try:
        return [(one.strip(), (int(r), int(g), int(b))) for one, r, g, b in rows]
    except ValueError:
        raise VitrailError(f"{listed}: a name and three numbers a line are expected") from None


def _table(text: str, listed: Path) -> list[dict[str, str]]:
    rows = [{str(key).strip(): value for key, value in row.items()} for row in csv.DictReader(text.splitlines())]
    if not rows or not {"name", "r", "g", "b"} <= rows[0].keys() or any(None in row.values() for row in rows):
        raise VitrailError(f"{listed}: columns name, r, g and b are expected in every line")
    return rows


def _sides(name: str, root: Path, ending: str, suffix: str) -> tuple[Paths, Paths, npt.NDArray[np.bool_]]:
    images: list[Path] = []
    masks, sides = [], []
    for side in ("train", "test"):
        folder = root / side
        masks += pairs(folder, root / f"{side}{ending}", (f"benchmark {name}", f"benchmark {name}"), suffix=suffix)
        found = image_files(folder)
        images += found
        sides += [side == "test"] * len(found)
    return images, masks, np.array(sides, bool)


def _original(name: str, root: Path) -> tuple[Paths, Paths, npt.NDArray[np.bool_]]:
    sides = {side: [Path(line).stem for line in lines_of(root / f"{side}.txt", name)] for side in ("train", "test")}
    stems = [*sides["train"], *sides["test"]]
    images = [root / "701_StillsRaw_full" / f"{stem}.png" for stem in stems]
    masks = [root / "LabeledApproved_full" / f"{stem}_L.png" for stem in stems]
    return images, masks, np.arange(len(stems)) >= len(sides["train"])


def _numbers(path: Path) -> npt.NDArray[Any]:
    classes = mask_of(path.read_bytes(), str(path))
    return np.where(classes == VOID, IGNORE, classes)


def _read(
    name: str, files: tuple[Paths, Paths, npt.NDArray[np.bool_]], read: Any, class_names: list[str]
) -> DenseBenchmark:
    images, masks, test = files
    pictures = pictures_of(name, images, masks, test)
    truth = Truth("segmentation", lambda row: masks[row].read_bytes(), read, lambda row: str(masks[row]), class_names)
    return DenseBenchmark(pictures, truth)
