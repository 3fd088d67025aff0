"""Files with a value at every pixel, beside their images: masks of class numbers, and maps of depth."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.images.decode import RGB, DecodeError, DecodeLimits, decode_numbers

IGNORE = -1  # of pixels and patches without a label
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def pairs(
    images: Path, others: Path, where: tuple[str, str], endings: Sequence[str] = (".png",), suffix: str = ""
) -> list[Path]:
    """The files of ``others`` that belong to the images of ``images``, by their stem, in the images' order.

    Args:
        where: what names the two folders in messages.
        suffix: what the stems of ``others`` have at their end beside the image's.

    Raises:
        VitrailError: a folder is missing, or an image has no such file.
    """
    for name, folder in zip(where, (images, others), strict=True):
        if not folder.is_dir():
            raise VitrailError(f"{name}: {folder}: no such folder")
    known = {
        path.stem.removesuffix(suffix): path for path in sorted(others.iterdir()) if path.suffix.lower() in endings
    }
    stems = [path.stem for path in image_files(images)]
    if missing := sorted(set(stems) - known.keys()):
        raise VitrailError(f"{where[1]}: {others}: no {missing[0]}{suffix}{endings[0]} ({len(missing)} are missing)")
    return [known[stem] for stem in stems]


def image_files(folder: Path) -> list[Path]:
    """The images of ``folder`` by name; of files with one stem the last."""
    return list({path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGES}.values())


def numbers_of(data: Any, where: str, read: Callable[[bytes, DecodeLimits], Any] = decode_numbers) -> npt.NDArray[Any]:
    """The decoded ``data``.

    Raises:
        VitrailError: no bytes, or not an image.
    """
    if not isinstance(data, bytes):
        raise VitrailError(f"{where}: holds no image bytes")
    try:
        found: npt.NDArray[Any] = read(data, DecodeLimits())
    except DecodeError as fault:
        raise VitrailError(f"{where}: not a readable image ({fault})") from None
    return found


def mask_of(data: Any, where: str) -> npt.NDArray[np.integer]:
    """The class numbers [H, W] of an encoded mask; a palette's indices are the classes.

    Raises:
        VitrailError: it cannot be read, or has several channels.
    """
    classes = numbers_of(data, where)
    if classes.ndim != 2:
        raise VitrailError(f"{where}: a mask has one channel of class numbers, this file has {classes.shape[2]}")
    return classes


def depth_of(data: bytes, where: str, per_metre: float) -> npt.NDArray[np.float32]:
    """Depths [H, W] in metres of a PNG of whole numbers, or of a ``.npy`` file; NaN where nothing was measured.

    Args:
        per_metre: the file's units in a metre. Zero, negative and infinite values are holes.

    Raises:
        VitrailError: it cannot be read, or has several channels.
    """
    if data[:6] == b"\x93NUMPY":
        try:
            values = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError) as fault:
            raise VitrailError(f"{where}: not a readable array ({fault})") from None
    else:
        values = numbers_of(data, where)
    if values.ndim != 2 or values.dtype.kind not in "iuf":
        raise VitrailError(f"{where}: depths are numbers [H, W], this file holds {values.dtype} {list(values.shape)}")
    with np.errstate(invalid="ignore"):
        metres: npt.NDArray[np.float32] = values.astype(np.float32) / np.float32(per_metre)
        metres[~(np.isfinite(metres) & (metres > 0))] = np.nan
    return metres


def same_size(values: npt.NDArray[Any], rgb: RGB, where: str, what: str) -> None:
    """Refuse ``values`` [H, W] that are not of the image's size."""
    if values.shape != rgb.shape[:2]:
        sides = " and ".join(f"{h} x {w} px" for h, w in (values.shape, rgb.shape[:2]))
        raise VitrailError(f"{where}: the {what} and its image differ in size: {sides}")
