"""From addresses to a batch: what a loader's worker does, in a process of its own or in the training one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from components.errors import VitrailError
from components.images.dataset import Address, ManifestDataset
from components.images.decode import DecodeError, DecodeLimits, decode
from components.images.quarantine import Quarantine, QuarantineEntry
from components.images.sampler import BLOCK, replacements, sample_generator
from components.params import CHANGES, NEUTRAL, Strict

Transform = Callable[[Any, np.random.Generator], Any]  # (bytes, or uint8 [H, W, 3] or [H, W]; generator) -> sample
Collate = Callable[[list[Any]], Any]


class LoaderParams(Strict):
    """How images reach the training process."""

    workers: Annotated[int, NEUTRAL] = Field(0, ge=0, le=4096)  # processes; 0: in the training process
    prefetch: Annotated[int, NEUTRAL] = Field(2, ge=1, le=1000)  # batches a worker prepares ahead
    block: Annotated[int, CHANGES] = Field(BLOCK, ge=1024, le=2**50)  # draws permuted together
    # unreadable images in a row, for one draw, that end the run
    replacements: Annotated[int, NEUTRAL] = Field(100, ge=1, le=1000)
    # keep decoded images in memory: for sets of a few thousand small images
    cache_decoded: Annotated[bool, CHANGES] = False
    # of them, a process; what is more is decoded again each time, to the same pixels
    cache_megabytes: Annotated[int, NEUTRAL] = Field(1000, ge=1, le=10_000_000)
    # pixels; the shorter side of cached images. None: as it is
    cache_side: Annotated[int | None, CHANGES] = Field(None, ge=16, le=8192)


class Task(NamedTuple):
    """One draw: its place in the stream and the image at that place."""

    epoch: int
    position: int
    address: Address


@dataclass(frozen=True)
class Batch:
    """What one rank trains on in one step."""

    keys: list[str]  # of the images, after replacements; for error reports
    data: Any  # what the collate function made of the samples


class Preparer:
    """Tasks to a batch: reads, decodes, replaces what is corrupt, transforms, collates."""

    def __init__(
        self,
        dataset: ManifestDataset,
        transform: Transform,
        collate: Collate,
        seed: int,
        params: LoaderParams,
        quarantine: Path | None,
    ) -> None:
        self._dataset, self._transform, self._collate = dataset, transform, collate
        self._seed, self._params = seed, params
        self._quarantine = Quarantine(quarantine)
        self._cache: dict[str, npt.NDArray[np.uint8]] = {}
        self._cached = 0  # bytes

    def __call__(self, tasks: Sequence[Task]) -> Batch:
        """Prepare the batch of ``tasks``."""
        keys, samples = zip(*(self._sample(task) for task in tasks), strict=True)
        return Batch(list(keys), self._collate(list(samples)))

    def __getitems__(self, tasks: Sequence[Task]) -> Batch | VitrailError:
        """The batch of ``tasks``, under the name by which torch's DataLoader asks a worker for one.

        A fault is a value here: raised, it would come out wrapped in the worker's traceback.
        """
        try:
            return self(tasks)
        except VitrailError as fault:
            return fault

    def _sample(self, task: Task) -> tuple[str, Any]:
        address, others, reason = task.address, None, ""
        for _ in range(self._params.replacements):
            try:
                source = self._source(address)
                return address.key, self._transform(source, sample_generator(self._seed, task.epoch, task.position))
            except DecodeError as fault:
                reason = str(fault)
                self._quarantine.add(QuarantineEntry(*address, reason))
            if others is None:
                others = replacements(len(self._dataset), self._seed, task.epoch, task.position)
            address = self._dataset.addresses([next(others)])[0]
        raise VitrailError(
            f"{self._dataset.manifest}: {self._params.replacements} images in a row could not be decoded,"
            f" the last {address.key} in {address.shard} ({reason}); see the quarantine and rerun the curate stage"
        )

    def _source(self, address: Address) -> Any:
        if not self._params.cache_decoded:
            return self._dataset.read(address)
        pixels = self._cache.get(address.key)
        if pixels is None:
            pixels = compact(decode(self._dataset.read(address), DecodeLimits()), self._params.cache_side)
            if self._cached + pixels.nbytes <= self._params.cache_megabytes * 1_000_000:
                self._cache[address.key] = pixels
                self._cached += pixels.nbytes
        return pixels


def compact(pixels: npt.NDArray[np.uint8], side: int | None) -> npt.NDArray[np.uint8]:
    """``pixels`` [H, W, 3] shrunk to a shorter side of ``side``, and [H, W] where all channels are equal."""
    import cv2

    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    height, width = pixels.shape[:2]
    if side is not None and min(height, width) > side:
        factor = side / min(height, width)
        target = (max(side, round(width * factor)), max(side, round(height * factor)))
        pixels = np.asarray(cv2.resize(pixels, target, interpolation=cv2.INTER_AREA), np.uint8)
    return pixels
