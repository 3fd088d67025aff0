"""The fixed sample that a run is probed on, read and decoded once: labelled squares, and pictures with dense labels.

Both come from training-side images alone. They are drawn by ``probe.seed``, so runs with equal ``probe`` sections are
scored on the same images, and their digests say so.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError, nearest
from components.evaluation.features.extract import Rows, raw_pixels, square, without_equal_channels
from components.evaluation.probing.dense_sample import (
    DenseSet,
    MosaicPlan,
    mosaics,
    named_masks,
    own_masks,
    plan_mosaics,
)
from components.evaluation.sets.benchmarks import Benchmark, task_name
from components.evaluation.sets.dense_set import DenseBenchmark
from components.images.decode import RGB
from components.training.params import TrainingParams
from components.training.probe_params import DenseMosaicParams, DenseNamedParams, ProbeParams


@dataclass(frozen=True)
class Labelled:
    """n images of a benchmark's training side, the bank first."""

    name: str  # of the benchmark
    rows: list[int]  # of the benchmark
    bank: int  # images that neighbours are sought among and the linear probe is fitted on; the others are scored
    squares: npt.NDArray[np.uint8]  # [n, S, S, 3]
    raw: Rows  # [n, D], pixels of small squares
    labels: dict[str, npt.NDArray[np.int64]]  # task -> [n]
    groups: npt.NDArray[np.int64] | None  # [n]
    digest: str  # over the files' bytes, the labels, and what is scored


@dataclass(frozen=True)
class ProbeSample:
    """What a run is probed on."""

    labelled: Labelled | None
    dense: DenseSet | None


def draw(benchmark: Benchmark | None, params: TrainingParams, masks: DenseBenchmark | None = None) -> ProbeSample:
    """The sample that ``params.probe`` describes.

    Args:
        masks: the set that ``params.probe.dense`` names, where it names one.

    Raises:
        VitrailError: an image cannot be read, or the dense probe's data are not as described.
    """
    probe, augment, patch = params.probe, params.augment, params.vit.patch_size
    size = max(1, ((probe.dense and probe.dense.image_size) or augment.global_size) // patch) * patch
    if benchmark is None:
        return ProbeSample(None, _masks(probe, masks, size))
    bank, held_out = probe_rows(benchmark, probe)
    if not isinstance(probe.dense, DenseMosaicParams):
        labelled, _ = _labelled(benchmark, bank, held_out, params)
        return ProbeSample(labelled, _masks(probe, masks, size))
    task = task_name(probe.dense.task)
    if task not in benchmark.labels:
        known = list(benchmark.labels)
        raise VitrailError(
            f"probe.dense.task: {task!r} is no label set of {benchmark.name}; there are {', '.join(known)}"
            f"{nearest(task, known)}"
        )
    plan = plan_mosaics(bank, held_out, probe.dense, size, probe.seed)
    labelled, squares = _labelled(benchmark, bank, held_out, params, plan)
    return ProbeSample(labelled, mosaics(benchmark, task, plan, squares))


def _masks(probe: ProbeParams, masks: DenseBenchmark | None, size: int) -> DenseSet | None:
    """The pictures of the dense probe where they are no mosaics."""
    if probe.dense is None or isinstance(probe.dense, DenseMosaicParams):
        return None
    if isinstance(probe.dense, DenseNamedParams):
        assert masks is not None
        return named_masks(probe.dense, masks, size, probe.seed)
    return own_masks(probe.dense, size, probe.seed)


def probe_rows(benchmark: Benchmark, probe: ProbeParams) -> tuple[list[int], list[int]]:
    """Bank rows and held-out rows: a draw by ``probe.seed`` from the benchmark's training side.

    A side too small for both is cut in the asked proportion. Where the benchmark names groups (images of one scene or
    module), no group is on both sides; the numbers asked for are then met up to a group.

    Raises:
        VitrailError: nothing is left for one of the two.
    """
    side = np.flatnonzero(~np.asarray(benchmark.test))
    generator = np.random.default_rng([probe.seed, 0x9E3779B9])
    wanted = probe.bank + probe.held_out
    if benchmark.groups is None:
        order = generator.permutation(side)
    else:
        groups = np.unique(benchmark.groups[side])
        place = np.empty(int(groups.max()) + 1, np.int64)
        place[generator.permutation(groups)] = np.arange(len(groups))
        order = side[np.argsort(place[benchmark.groups[side]], kind="stable")]
    order = order[:wanted]
    bank = probe.bank if len(order) == wanted else round(len(order) * probe.bank / wanted)
    if benchmark.groups is not None and 0 < bank < len(order):
        bank = int(np.flatnonzero(benchmark.groups[order] == benchmark.groups[order[bank]])[0])  # the group's start
    if not 0 < bank < len(order):
        raise VitrailError(
            f"probe: {len(side)} training-side images of {benchmark.name} cannot be divided into a bank and a "
            "held-out part; lower probe.held_out, or use a larger benchmark"
        )
    return [int(row) for row in order[:bank]], [int(row) for row in order[bank:]]


def _labelled(
    benchmark: Benchmark,
    bank: list[int],
    held_out: list[int],
    params: TrainingParams,
    plan: MosaicPlan | None = None,
) -> tuple[Labelled, dict[int, RGB]]:
    """The labelled images, and those of ``plan`` at its size: every image is decoded once."""
    rows = bank + held_out
    wanted = set(plan.rows.flat) if plan is not None else set()
    larger: dict[int, RGB] = {}
    side, raw_side = params.augment.global_size, params.probe.raw_side
    digest = hashlib.sha256()
    squares = np.empty((len(rows), side, side, 3), np.uint8)
    small = np.empty((len(rows), raw_side, raw_side, 3), np.uint8)
    for number, row in enumerate(rows):
        digest.update(hashlib.sha256(benchmark.images.bytes(row)).digest())
        rgb = benchmark.images.rgb(row)
        squares[number], small[number] = square(rgb, side), square(rgb, raw_side)
        if plan is not None and row in wanted:
            larger[row] = square(rgb, plan.size)
    labels = {task: np.asarray(values)[rows] for task, values in benchmark.labels.items()}
    facts: dict[str, Any] = {
        "benchmark": benchmark.name,
        "bank": len(bank),
        "labels": {task: values.tolist() for task, values in labels.items()},
        "class_names": benchmark.class_names,
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    raw = without_equal_channels(raw_pixels(raw_side).features(small))
    groups = None if benchmark.groups is None else benchmark.groups[rows]
    name = benchmark.name
    return Labelled(name, rows, len(bank), squares, raw, labels, groups, digest.hexdigest()), larger
