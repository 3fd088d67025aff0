"""Frozen features of a benchmark's images: every image is decoded once, for all extractors together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from components.errors import VitrailError
from components.evaluation.sets.labelled_set import Divisible, Images
from components.images.decode import RGB
from components.learning.collate import normalize
from components.learning.crops import resize
from components.learning.vit import VisionTransformer
from components.params import NEUTRAL, Strict
from components.progress import Progress

Rows = npt.NDArray[np.float32]
Tokens = Literal["cls", "patches", "cls+patches"]


class FeatureParams(Strict):
    """How images become features."""

    image_size: int | None = Field(
        None, ge=16, le=8192
    )  # px of the square fed to a network; None: the size it was trained at
    crop: float = Field(1.0, gt=0, le=1)  # share of the shorter side that the centre crop keeps
    tokens: Tokens = "cls"  # class token, mean of the patch tokens, or both
    batch_size: Annotated[int, Field(ge=1, le=4096), NEUTRAL] = 64
    # Class tokens of so many last blocks are kept for the linear grid, with the last one's mean patch token; null: none
    blocks: int | None = Field(None, ge=1, le=64)


@dataclass(frozen=True)
class Extractor:
    """What turns a batch of squares, uint8 [B, size, size, 3], into features, float32 [B, D].

    With ``width`` D holds several tokens of that width: class tokens of the last blocks, then the mean patch token.
    """

    size: int
    crop: float
    features: Callable[[npt.NDArray[np.uint8]], Rows]
    width: int | None = None
    tokens: Tokens = "cls"

    def main(self, rows: Rows) -> Rows:
        """The features that kNN and the probe use, of ``rows`` as :attr:`features` gives them."""
        if self.width is None:
            return rows
        halves = {"cls": rows[:, -2 * self.width : -self.width], "patches": rows[:, -self.width :]}
        return _joined([halves[name] for name in self.tokens.split("+")])

    def inputs(self, rows: Rows, blocks: Sequence[int], pooling: Sequence[bool]) -> dict[str, Rows]:
        """What the heads of the linear grid read, by name; without ``width`` that is ``rows`` alone."""
        if self.width is None:
            return {"features": rows}
        found = {}
        for count in blocks:
            first = rows.shape[1] - (count + 1) * self.width
            if first < 0:
                raise VitrailError(f"linear grid: {count} blocks are asked for, and features hold fewer")
            for pooled in pooling:
                name = f"{count} block{'s' if count > 1 else ''}{', pooled' if pooled else ''}"
                found[name] = rows[:, first : None if pooled else -self.width]
        return found


def _joined(halves: Sequence[Rows]) -> Rows:
    """One token as it is; of several each with unit length, so that each has the same say in a cosine."""
    if len(halves) == 1:
        return np.ascontiguousarray(halves[0])
    lengths = [np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-12) for half in halves]
    return np.concatenate([half / length for half, length in zip(halves, lengths, strict=True)], axis=1)


def network(
    model: VisionTransformer,
    mean: Sequence[float],
    std: Sequence[float],
    trained_at: int,
    params: FeatureParams,
    device: torch.device | str = "cpu",
) -> Extractor:
    """The extractor of a frozen network; ``mean`` and ``std`` are of its training's normalisation.

    Both halves of ``cls+patches`` have unit length, so that each has the same say in a cosine.
    """
    size = params.image_size or trained_at
    size = max(1, size // model.config.patch_size) * model.config.patch_size

    if params.blocks is not None:
        return _several(model, mean, std, size, params, device)

    @torch.inference_mode()
    def features(batch: npt.NDArray[np.uint8]) -> Rows:
        out = model(normalize(torch.from_numpy(batch).permute(0, 3, 1, 2), mean, std, device))
        halves = {"cls": out.cls, "patches": out.patches.mean(1)}
        wanted = [halves[name].float() for name in params.tokens.split("+")]
        if len(wanted) > 1:
            wanted = [torch.nn.functional.normalize(half, dim=1) for half in wanted]
        joined: Rows = torch.cat(wanted, 1).cpu().numpy()
        return joined

    return Extractor(size, params.crop, features)


def _several(
    model: VisionTransformer,
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    params: FeatureParams,
    device: torch.device | str,
) -> Extractor:
    """The extractor of :func:`network` that keeps tokens of ``params.blocks`` blocks, of all where it has fewer."""
    blocks = min(params.blocks or 1, len(model.blocks))

    @torch.inference_mode()
    def features(batch: npt.NDArray[np.uint8]) -> Rows:
        found = model.intermediate(normalize(torch.from_numpy(batch).permute(0, 3, 1, 2), mean, std, device), blocks)
        parts = [one.cls.float() for one in found] + [found[-1].patches.mean(1).float()]
        joined: Rows = torch.cat(parts, 1).cpu().numpy()
        return joined

    return Extractor(size, params.crop, features, model.config.embed_dim, params.tokens)


def raw_pixels(side: int, crop: float = 1.0) -> Extractor:
    """The extractor that learns nothing: pixels of a ``side`` x ``side`` picture in 0 ... 1, [B, side * side * 3]."""

    return Extractor(side, crop, _pixels)


def _pixels(batch: npt.NDArray[np.uint8]) -> Rows:
    return batch.reshape(len(batch), -1).astype(np.float32) / np.float32(255)


def without_equal_channels(pixels: Rows) -> Rows:
    """Raw pixels [n, side * side * 3] of which all pictures are gray as [n, side * side], others as they are."""
    channels = pixels.reshape(len(pixels), -1, 3)
    gray = (channels[..., 0] == channels[..., 1]).all() and (channels[..., 0] == channels[..., 2]).all()
    return np.ascontiguousarray(channels[..., 0]) if gray else pixels


def untrained(model: VisionTransformer, seed: int) -> VisionTransformer:
    """A network of the same shape that has seen nothing: fresh weights drawn with ``seed``."""
    fresh = VisionTransformer(model.config)
    fresh.init_weights(torch.Generator().manual_seed(seed))
    return fresh.eval()


def extract(
    extractors: Mapping[str, Extractor], images: Images, batch_size: int, label: str = "features"
) -> dict[str, Rows]:
    """Features of all ``images`` by each of ``extractors``, float32 [n, D]; no more than a batch of pixels is held."""
    found: dict[str, list[Rows]] = {name: [] for name in extractors}
    progress = Progress(label, len(images), unit="images")
    for number, made in enumerate(batches(extractors, images, batch_size)):
        for name, rows in made.items():
            found[name].append(rows)
        progress.advance(min(batch_size, len(images) - number * batch_size))
    progress.close()
    return {name: np.concatenate(parts) for name, parts in found.items()}


def batches(extractors: Mapping[str, Extractor], images: Images, batch_size: int) -> Iterator[dict[str, Rows]]:
    """Features of one batch of ``images`` after another, by each of ``extractors``.

    Threads decode the next batch while networks compute, so that they need not wait. Images of a plugin may stand no
    threads; they are decoded in between.
    """
    views = sorted({(extractor.size, extractor.crop) for extractor in extractors.values()})

    def prepared(row: int) -> list[RGB]:
        rgb = images.rgb(row)
        return [square(rgb, *view) for view in views]

    def features(pictures: Sequence[Sequence[RGB]]) -> dict[str, Rows]:
        squares = {view: np.stack([one[number] for one in pictures]) for number, view in enumerate(views)}
        return {name: one.features(squares[one.size, one.crop]) for name, one in extractors.items()}

    batch_rows = [range(at, min(at + batch_size, len(images))) for at in range(0, len(images), batch_size)]
    if not isinstance(images, Divisible):
        for rows in batch_rows:
            yield features([prepared(row) for row in rows])
        return
    with ThreadPoolExecutor(_threads()) as pool:
        waiting: list[Future[list[RGB]]] = []
        for number, rows in enumerate(batch_rows):
            waiting = waiting or [pool.submit(prepared, row) for row in rows]
            after = batch_rows[number + 1] if number + 1 < len(batch_rows) else ()
            coming = [pool.submit(prepared, row) for row in after]
            yield features([future.result() for future in waiting])
            waiting = coming


def _threads() -> int:
    """Two beside a CPU; beside a GPU its share of the cores."""
    if not torch.cuda.is_available():
        return 2
    return max(2, len(os.sched_getaffinity(0)) // torch.cuda.device_count())


def square(rgb: RGB, size: int, crop: float = 1.0) -> RGB:
    """The centre square of ``rgb``, ``crop`` of its shorter side, at ``size`` x ``size`` (antialiased bicubic)."""
    height, width = rgb.shape[:2]
    side = max(1, round(min(height, width) * crop))
    top, left = (height - side) // 2, (width - side) // 2
    picture: Any = resize(np.ascontiguousarray(rgb[top : top + side, left : left + side]), size)
    return np.asarray(picture, np.uint8)
