"""Figures of dense methods over the executor: a network at a time, whose tokens and heads stay in one process.

Tokens of patches are too many to travel (a picture of 512 px has 5 MB of a ViT-L's, a block), so figures do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from components.benchmark.features.contenders import Contender, ExtractorRecipe
from components.benchmark.features.spread import Placement
from components.benchmark.methods.dense import dense_figures, video_figures
from components.benchmark.methods.figure import Figure
from components.benchmark.methods.protocol import Protocol
from components.evaluation.features.extract import raw_pixels
from components.evaluation.features.patch_tokens import raw_patches
from components.evaluation.sets.dense_layouts import DenseSetParams, load_dense
from components.evaluation.sets.video_set import DavisParams, load_davis
from components.executor import map_shards
from components.learning.export import weights_digest
from components.release.weights.load import worker_device

DenseTask = Callable[[Sequence[Contender], str], list[Figure]]  # figures of contenders on a device; picklable


class DenseItem(NamedTuple):
    """A contender without what cannot travel."""

    number: int
    contender: Contender
    recipe: ExtractorRecipe | None  # None: raw pixels


def dense_task(name: str, spec: DenseSetParams, protocol: Protocol, confidence: float) -> DenseTask:
    """What :func:`components.benchmark.methods.dense.dense_figures` measures on the set that ``spec`` describes."""
    return partial(_dense, name, spec, protocol, confidence)


def video_task(name: str, spec: DavisParams, protocol: Protocol, confidence: float) -> DenseTask:
    """The same of :func:`components.benchmark.methods.dense.video_figures`."""
    return partial(_videos, name, spec, protocol, confidence)


def spread_figures(task: DenseTask, contenders: Sequence[Contender], place: Placement) -> list[Figure]:
    """The figures of all ``contenders``, in their order; those without tokens of patches have none."""
    works = [_work(number, one) for number, one in enumerate(one for one in contenders if one.patches is not None)]
    found: list[Figure] = []
    for figures in map_shards(partial(_measure, task, place.device), works, place.executor):
        found += figures
    return found


def _work(number: int, contender: Contender) -> DenseItem:
    recipe = contender.recipe
    if recipe is not None and contender.model is not None:
        recipe = replace(recipe, weights=weights_digest(contender.model))
    bare = Contender(contender.name, contender.kind, raw_pixels(1), {})
    return DenseItem(number, bare, recipe)


def _measure(task: DenseTask, device: str, work: DenseItem) -> list[Figure]:
    """Runs in a worker."""
    device = worker_device(device, work.number)
    patches = raw_patches() if work.recipe is None else work.recipe.patches(device)
    return task([replace(work.contender, patches=patches)], device)


def _dense(
    name: str, spec: DenseSetParams, protocol: Protocol, confidence: float, contenders: Sequence[Contender], device: str
) -> list[Figure]:
    return dense_figures(contenders, load_dense(name, spec), protocol, confidence, device)


def _videos(
    name: str, spec: DavisParams, protocol: Protocol, confidence: float, contenders: Sequence[Contender], device: str
) -> list[Figure]:
    return video_figures(contenders, load_davis(name, spec), protocol, confidence, device)
