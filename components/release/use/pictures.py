"""Pictures of what a model sees: patch features as colours, and where the class token attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from components.errors import VitrailError
from components.evaluation.features.extract import square
from components.evaluation.features.pca import pca_pictures
from components.images.decode import RGB, DecodeError
from components.learning.collate import normalize
from components.release.use.features import Picture, check_size, named, pixels
from components.release.weights.load import LoadedModel
from components.storage import atomic_file

GAP = 4  # px of white between pictures


@dataclass(frozen=True)
class AttentionMaps:
    """Softmax attention of the last block, a head at a time; each row over all tokens sums to one."""

    image: RGB  # [H, W, 3], what the network saw
    cls: npt.NDArray[np.float32]  # [heads, rows, columns]: from the class token to patches
    cls_to_registers: npt.NDArray[np.float32]  # [heads, R]
    registers: npt.NDArray[np.float32]  # [R, heads, rows, columns]: from each register to patches


def pca(
    model: LoadedModel, images: Sequence[Picture], size: int | None = None, foreground: bool = True
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """What the network saw and its patch features as colours, both [N, size, size, 3] uint8.

    Three principal components, of all images together, are red, green and blue: equal colours are equal features. With
    ``foreground`` the first component parts the subject from the background, which stays black (DINOv2, section 7.5).

    Args:
        size: px of the square that images are resized to; None: the model's own.

    Raises:
        VitrailError: an image cannot be used, or the size is no multiple of the patch.
    """
    squares, found = _last_tokens(model, images, size)
    side = squares.shape[1]
    grid = (side // model.card.vit.patch_size,) * 2
    return squares, pca_pictures(found, grid, side, foreground=foreground)


def attention(model: LoadedModel, image: Picture, size: int | None = None) -> AttentionMaps:
    """Where the class token and the registers attend to in the last block.

    Raises:
        VitrailError: as :func:`pca`.
    """
    squares = _squares(model, [image], size)
    network, seen = model.backbone, dict[str, Any]()
    last: Any = network.blocks[-1]
    handle = last.attn.register_forward_pre_hook(lambda module, given: seen.update(x=given[0]))
    try:
        with torch.inference_mode():
            network(_normalized(model, squares))
            vit, rows = model.card.vit, squares.shape[1] // model.card.vit.patch_size
            parts = last.attn.qkv(seen["x"]).view(-1, 3, vit.heads, vit.embed_dim // vit.heads)
            query, key = parts[:, 0].transpose(0, 1), parts[:, 1].transpose(0, 1)  # [heads, T, head dim]
            first = query[:, : 1 + vit.registers]
            weights = (first @ key.transpose(1, 2) / first.shape[-1] ** 0.5).float().softmax(-1).cpu().numpy()
    finally:
        handle.remove()
    to_patches = weights[..., 1 + vit.registers :].reshape(vit.heads, 1 + vit.registers, rows, rows)
    return AttentionMaps(
        squares[0], to_patches[:, 0], weights[:, 0, 1 : 1 + vit.registers], to_patches[:, 1:].transpose(1, 0, 2, 3)
    )


def pca_page(seen: npt.NDArray[np.uint8], colours: npt.NDArray[np.uint8], columns: int = 8) -> RGB:
    """Images with their colours below them, ``columns`` a row."""
    rows = []
    for start in range(0, len(seen), columns):
        rows += [list(seen[start : start + columns]), list(colours[start : start + columns])]
    return tiled(rows)


def attention_page(found: AttentionMaps) -> RGB:
    """First the image and the class token's map a head, then a row of maps for each register."""
    side = found.image.shape[0]
    rows = [[found.image, *(_map(head, side) for head in found.cls)]]
    rows += [[np.full_like(found.image, 255), *(_map(head, side) for head in maps)] for maps in found.registers]
    return tiled(rows)


def tiled(rows: Sequence[Sequence[RGB]]) -> RGB:
    """Pictures in rows and columns on white; all of the first one's size."""
    height, width = rows[0][0].shape[:2]
    columns = max(map(len, rows))
    page = np.full((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            top, left = row * (height + GAP), column * (width + GAP)
            page[top : top + height, left : left + width] = picture
    return page


def shrunk(rgb: RGB, side: int) -> RGB:
    """``rgb`` with a longer side of ``side`` px."""
    import cv2

    factor = side / max(rgb.shape[:2])
    size = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def save_png(picture: RGB, out: Path) -> None:
    """Write ``picture`` [H, W, 3] uint8 to ``out``."""
    from PIL import Image

    with atomic_file(out) as file:
        Image.fromarray(picture).save(file, "PNG")


def _map(weights: npt.NDArray[np.float32], side: int) -> RGB:
    """A map [rows, columns] from black (none) to white (its largest), at ``side`` px."""
    gray = (weights / max(float(weights.max()), 1e-12) * 255).round().astype(np.uint8)
    factor = side // weights.shape[0]
    large = gray.repeat(factor, 0).repeat(factor, 1)
    return np.repeat(large[..., None], 3, 2)


def _squares(model: LoadedModel, images: Sequence[Picture], size: int | None) -> npt.NDArray[np.uint8]:
    side = model.card.image_size if size is None else size
    check_size(side, side, model.card.vit.patch_size)
    if not images:
        raise VitrailError("no images to show")
    found = []
    for number, image in enumerate(images):
        try:
            found.append(square(pixels(image), side))
        except DecodeError as fault:
            raise VitrailError(f"{named(image, number)}: {fault}") from None
    return np.stack(found)


def _normalized(model: LoadedModel, squares: npt.NDArray[np.uint8]) -> torch.Tensor:
    device = model.backbone.embeddings.pos_embed.device
    return normalize(torch.from_numpy(squares).permute(0, 3, 1, 2), model.card.mean, model.card.std, device)


def _last_tokens(
    model: LoadedModel, images: Sequence[Picture], size: int | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    squares = _squares(model, images, size)
    with torch.inference_mode():
        found = [model.backbone(_normalized(model, squares[i : i + 8])).patches for i in range(0, len(squares), 8)]
        return squares, torch.cat(found).float().cpu().numpy()
