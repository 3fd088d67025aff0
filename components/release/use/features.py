"""Features of images by a loaded model: class token, mean of the patch tokens, grid of patch tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from components.errors import VitrailError
from components.evaluation.features.extract import square
from components.images.decode import RGB, DecodeError, DecodeLimits, decode
from components.learning.collate import normalize
from components.learning.vit import VisionTransformer
from components.params import NEUTRAL, Strict
from components.release.weights.load import LoadedModel

FeatureKind = Literal["cls", "mean", "patches"]
Picture = bytes | RGB | str | Path  # an encoded image, its pixels [H, W, 3] or [H, W] uint8, or the path of a file


class FeatureSpec(Strict):
    """Which features, of images of which size."""

    kinds: tuple[FeatureKind, ...] = ("cls",)
    size: Annotated[int, Field(ge=1, le=65_536)] | Literal["native"] | None = (
        None  # px of the centre square; its own size; None: the model's own square
    )
    crop: bool = False  # cut sides that are no multiple of the patch down to the next that is, about the centre
    batch: Annotated[int, Field(ge=1, le=65_536), NEUTRAL] = 32  # images a forward pass; of equal size
    # That decode, while the network computes; 0: two where it computes on these cores too, else one a core
    threads: Annotated[int, Field(ge=0, le=1024), NEUTRAL] = 0

    def side(self, model: LoadedModel) -> int | None:
        """Pixels of the square that images are resized to; None: they keep their own size.

        Raises:
            VitrailError: no multiple of the patch, and not to be cropped; names the sizes that fit.
        """
        if self.size == "native":
            return None
        size = self.size or model.card.image_size
        if not self.crop:
            check_size(size, size, model.card.vit.patch_size)
        return size


@dataclass(frozen=True)
class ImageFeatures:
    """One image's features, or why it has none."""

    key: str
    error: str = ""  # "": none
    height: int = 0  # px of the image itself, as shown
    width: int = 0
    grid: tuple[int, int] = (0, 0)  # rows and columns of patches
    cls: npt.NDArray[np.float32] | None = None  # [D]
    mean: npt.NDArray[np.float32] | None = None  # [D], of the patch tokens
    patches: npt.NDArray[np.float16] | None = None  # [rows, columns, D]


def check_size(height: int, width: int, patch: int) -> None:
    """Nothing when both sides are multiples of ``patch``.

    Raises:
        VitrailError: they are not; names the nearest sizes that fit.
    """
    if height % patch or width % patch or height < 1 or width < 1:
        less = [max(1, side // patch) * patch for side in (height, width)]
        more = [max(1, -(-side // patch)) * patch for side in (height, width)]
        raise VitrailError(
            f"{height} x {width} px: sides must be multiples of the patch of {patch} px; "
            f"{less[0]} x {less[1]} and {more[0]} x {more[1]} fit, or crop with --crop-to-patch"
        )


def embed(
    model: LoadedModel, images: Iterable[tuple[str, Picture | VitrailError]], spec: FeatureSpec | None = None
) -> Iterator[ImageFeatures]:
    """Features of ``images``, pairs of a key and a picture, in their order.

    An image that cannot be decoded, or whose size does not fit, is a row with an error; the others are not held up.
    Pixels of two batches are in memory. Runs on the device that the model is on.

    Raises:
        VitrailError: ``spec.size`` does not fit the model.
    """
    spec = spec or FeatureSpec()
    side, patch = spec.side(model), model.card.vit.patch_size
    supply = iter(images)

    def prepared(pair: tuple[str, Picture | VitrailError]) -> tuple[ImageFeatures, RGB | None]:
        return _prepared(*pair, side, patch, spec.crop)

    with ThreadPoolExecutor(spec.threads or _threads(model)) as pool:
        waiting = [pool.submit(prepared, pair) for pair in islice(supply, spec.batch)]
        while waiting:
            coming = [pool.submit(prepared, pair) for pair in islice(supply, spec.batch)]
            yield from _forward(model, [future.result() for future in waiting], spec)
            waiting = coming


def _threads(model: LoadedModel) -> int:
    if model.backbone.embeddings.pos_embed.device.type == "cpu":
        return 2
    return max(2, len(os.sched_getaffinity(0)))


def embed_array(
    model: LoadedModel, images: Sequence[Picture], spec: FeatureSpec | None = None
) -> npt.NDArray[np.float32]:
    """Class tokens of ``images``, float32 [N, D]; with ``spec.kinds == ("mean",)`` means of patches.

    Raises:
        VitrailError: an image cannot be used; names its file, or its place where it comes from none.
    """
    spec = spec or FeatureSpec()
    rows = list(embed(model, ((named(image, number), image) for number, image in enumerate(images)), spec))
    for row in rows:
        if row.error:
            raise VitrailError(row.error if row.error.startswith(row.key) else f"{row.key}: {row.error}")
    found = [row.cls if "cls" in spec.kinds else row.mean for row in rows]
    dim = model.card.vit.embed_dim
    return np.stack([each for each in found if each is not None]) if found else np.empty((0, dim), np.float32)


def named(image: Picture, number: int) -> str:
    """What messages call the image of that place in a list: its file, where it is one."""
    return str(image) if isinstance(image, str | Path) else f"image {number}"


def pixels(image: Picture) -> RGB:
    """``image`` as uint8 RGB [H, W, 3].

    Raises:
        DecodeError: not an image within the decoder's limits.
        VitrailError: the file cannot be read, or an array is not one of an image.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise VitrailError(
                f"an array {image.dtype} {image.shape}; images are uint8 [H, W, 3], or [H, W] where gray"
            )
        return image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
    if isinstance(image, bytes):
        return decode(image, DecodeLimits())
    path = Path(image)
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise VitrailError(f"{path}: cannot be read: {fault.strerror}") from None
    return decode(data, DecodeLimits())


def _prepared(
    key: str, image: Picture | VitrailError, side: int | None, patch: int, crop: bool
) -> tuple[ImageFeatures, RGB | None]:
    try:
        if isinstance(image, VitrailError):
            raise image
        rgb = pixels(image)
        height, width = rgb.shape[:2]
        if side is not None:
            rgb = square(rgb, side)
        if crop:
            rgb = centre_crop(rgb, patch)
        check_size(rgb.shape[0], rgb.shape[1], patch)
    except (DecodeError, VitrailError) as fault:
        return ImageFeatures(key, str(fault)), None
    grid = (rgb.shape[0] // patch, rgb.shape[1] // patch)
    return ImageFeatures(key, "", height, width, grid), rgb


def centre_crop(rgb: RGB, patch: int) -> RGB:
    """The middle of ``rgb`` whose sides are multiples of ``patch``; ``rgb`` where a side is below one patch."""
    height, width = (side // patch * patch for side in rgb.shape[:2])
    if not height or not width:
        return rgb
    top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def _forward(
    model: LoadedModel, prepared: list[tuple[ImageFeatures, RGB | None]], spec: FeatureSpec
) -> list[ImageFeatures]:
    """The rows with features; images of one size go through the network together."""
    rows = [row for row, _ in prepared]
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (_, rgb) in enumerate(prepared):
        if rgb is not None:
            groups.setdefault(rgb.shape, []).append(number)
    for numbers in groups.values():
        stacked = np.stack([rgb for number in numbers if (rgb := prepared[number][1]) is not None])
        for number, found in zip(numbers, _features(model, stacked, spec.kinds), strict=True):
            rows[number] = replace(rows[number], **found)
    for number, row in enumerate(rows):
        arrays = [each for each in (row.cls, row.mean, row.patches) if each is not None]
        if not all(np.isfinite(each).all() for each in arrays):
            rows[number] = ImageFeatures(
                row.key, "features are not finite: the model has diverged, or fp16 is too small for them"
            )
    return rows


@torch.inference_mode()
def _features(model: LoadedModel, stacked: npt.NDArray[np.uint8], kinds: Sequence[FeatureKind]) -> list[dict[str, Any]]:
    network: VisionTransformer = model.backbone
    device = network.embeddings.pos_embed.device
    images = normalize(torch.from_numpy(stacked).permute(0, 3, 1, 2), model.card.mean, model.card.std, device)
    out = network(images)
    patch = model.card.vit.patch_size
    grid = (stacked.shape[1] // patch, stacked.shape[2] // patch)
    columns: dict[str, Any] = {}
    if "cls" in kinds:
        columns["cls"] = out.cls.float().cpu().numpy()
    if "mean" in kinds:
        columns["mean"] = out.patches.float().mean(1).cpu().numpy()
    if "patches" in kinds:
        columns["patches"] = out.patches.half().cpu().numpy().reshape(len(stacked), *grid, -1)
    return [{name: values[number] for name, values in columns.items()} for number in range(len(stacked))]
