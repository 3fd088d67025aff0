"""What training a preset takes: memory, operations, bytes, time and scratch space on a number of GPUs.

A step's time is the longer of two: its operations at the utilisation of known runs, and its bytes on the wire. The two
overlap, and what did not overlap in the known runs is in their utilisation already; so their sum would count it twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from components.planning.training_rates import Gpu
from components.progress import duration
from components.training.costs.capability import count_parameters, memory_per_rank, sixteen_bit, tokens_per_rank
from components.training.costs.flops import bytes_moved, flops_per_step
from components.training.costs.memory import network_sizes, scratch_bytes
from components.training.params import TrainingParams

GB = 1e9
TF32 = 0.5  # share of that peak that products of fp32 matrices reach (vendor's data sheets)
ROOM = 0.95  # of a GPU's memory that may be planned
CLUSTERS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # numbers of GPUs that are tried


@dataclass(frozen=True)
class GpuCluster:
    """What is planned for."""

    gpus: int
    kind: str
    gpu: Gpu
    per_machine: int = 8
    rate: float | None = None  # images a second and GPU, as measured
    price: float | None = None  # of a GPU-hour, in any currency

    @property
    def bandwidth(self) -> float:
        """Bytes a second that a GPU sends while all do."""
        return 1e9 * (self.gpu.link if self.gpus <= self.per_machine else self.gpu.network)


def plan(
    path: Path, params: TrainingParams, on: GpuCluster, first: int = 0, teacher: TrainingParams | None = None
) -> str:
    """The plan, to read.

    Args:
        first: steps trained in an earlier phase.
        teacher: of distillation: the frozen network, in the place of the moving average.
    """
    half, counts = sixteen_bit(params, gpu=True), count_parameters(params)
    parts, moved = _memory(params, on.gpus, half, teacher), bytes_moved(params, on.gpus, half, teacher)
    flops, need = flops_per_step(params, on.gpus, teacher), sum(parts.values())
    micro = params.engine.accumulation
    batch, tokens = params.run.batch * on.gpus * micro, tokens_per_rank(params) * on.gpus * micro
    peak = on.gpus * on.gpu.teraflops * 1e12 * (1 if half else TF32)
    wire = sum(moved.values()) / on.bandwidth
    stretches = _stretches(params, flops, first)
    if on.rate is None:
        times = [max(sum(work.values()) / (peak * on.gpu.utilisation), wire) for _, work in stretches]
        basis = f"at {on.gpu.utilisation:.3g} of {on.kind}'s peak"
        if times[-1] == wire:
            basis = "for its traffic, which is more than its operations take"
    else:
        times = [batch / (on.rate * on.gpus)] * len(stretches)
        basis = f"at {on.rate:g} images/s a GPU, {sum(flops.values()) / times[-1] / peak:.0%} of peak"
    seconds = sum(steps * time for (steps, _), time in zip(stretches, times, strict=True))
    own = params.engine.precision if params.engine.precision != "auto" else "fp16"
    lines = [
        f"{path} on {on.gpus} x {on.kind}, {own} (shards to the byte; other memory, traffic and time estimated)",
        "parameters: " + ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in counts.items()),
        f"global batch: {batch:,} images ({on.gpus} GPUs x run.batch {params.run.batch} x engine.accumulation {micro})"
        f", {tokens:,} student tokens a step",
        *_other_batch(params, on, half, teacher),
        f"memory a GPU: {need / GB:.1f} GB of {on.gpu.gigabytes:.0f} GB"
        + ("" if _fits(need, on) else "  DOES NOT FIT"),
        *(f"  {name}: {size / GB:.3f} GB" for name, size in parts.items() if size),
        *(
            f"a step{when}: {sum(work.values()) / 1e12:.1f} TFLOP, about {time:.2f} s {basis}"
            for when, time, (_, work) in zip(_names(stretches), times, stretches, strict=True)
        ),
        *(f"  {name}: {work / 1e12:.3f} TFLOP" for name, work in flops.items()),
        f"each GPU sends and receives about {sum(moved.values()) / GB:.1f} GB a step, {wire:.2f} s at "
        f"{on.bandwidth / GB:g} GB/s",
        *(f"  {name}: {size / GB:.3f} GB" for name, size in moved.items() if size),
        *_scratch(params),
        f"the run: {params.run.iterations:,} steps, about {duration(seconds)}, {_cost(seconds * on.gpus / 3600, on)}",
        _smallest(params, on, half, teacher),
    ]
    return "\n".join(lines)


def _memory(params: TrainingParams, gpus: int, half: bool, teacher: TrainingParams | None) -> dict[str, float]:
    frozen = 0 if teacher is None else network_sizes(teacher.vit, teacher.heads).total
    return memory_per_rank(params, gpus, half, frozen, gpu=True)


def _fits(need: float, on: GpuCluster) -> bool:
    return need <= ROOM * on.gpu.gigabytes * GB


def _cost(hours: float, on: GpuCluster) -> str:
    if on.price is None:
        return f"{hours:,.0f} GPU-hours; --price of a GPU-hour gives the cost"
    return f"{hours:,.0f} GPU-hours, {hours * on.price:,.0f} at {on.price:g} a GPU-hour"


def _scratch(params: TrainingParams) -> list[str]:
    """What checkpoints take at most: those kept, and the one being written."""
    run, each = params.run, scratch_bytes(params)
    every = math.lcm(run.checkpoint_every, run.keep_every) if run.keep_every else 0  # steps that are saved and kept
    for_good = run.iterations // every if every else 0
    count = min(run.keep, max(1, run.iterations // run.checkpoint_every)) + 1 + for_good
    found = [
        f"scratch: {each / GB:.1f} GB a checkpoint, {count} at most ({run.keep} newest, {for_good} for good, one being "
        f"written): {count * each / GB:,.0f} GB"
    ]
    if run.keep_every and every != run.keep_every:
        found.append(
            f"  run.keep_every {run.keep_every:,} is no multiple of run.checkpoint_every {run.checkpoint_every:,}: "
            f"one in {every:,} steps is kept for good"
        )
    return found


def _stretches(params: TrainingParams, flops: dict[str, float], first: int) -> list[tuple[int, dict[str, float]]]:
    """Numbers of steps and the work of one, before gram anchoring counts and from there on."""
    total = params.run.iterations
    if params.gram is None:
        return [(total, flops)]
    start = max(0, min(total, int(params.gram.resolved(total).start) - first))
    without = {name: work for name, work in flops.items() if name != "gram teacher"}
    return [(steps, work) for steps, work in ((start, without), (total - start, flops)) if steps]


def _names(stretches: list[tuple[int, dict[str, float]]]) -> list[str]:
    if len(stretches) == 1:
        return [""]
    return [f" of the first {stretches[0][0]:,}", f" of the last {stretches[1][0]:,}, with the gram teacher"]


def _with_split(params: TrainingParams, batch: int, micro: int) -> TrainingParams:
    run = params.run.model_copy(update={"batch": batch})
    return params.model_copy(update={"run": run, "engine": params.engine.model_copy(update={"accumulation": micro})})


def _split(
    params: TrainingParams, gpus: int, on: GpuCluster, half: bool, teacher: TrainingParams | None
) -> tuple[int, int] | None:
    """``run.batch`` and accumulation that make the recipe's batch on ``gpus``: the fewest micro-batches that fit.

    Every micro-batch gathers all weights and reduces all gradients, so that traffic grows with their number.
    """
    each, left = divmod(params.run.recipe_batch or 0, gpus)
    if left or not each:
        return None
    for micro in (count for count in range(1, each + 1) if each % count == 0):
        own = _with_split(params, each // micro, micro)
        if _fits(sum(_memory(own, gpus, half, teacher).values()), on):
            return each // micro, micro
    return None


def _other_batch(params: TrainingParams, on: GpuCluster, half: bool, teacher: TrainingParams | None) -> list[str]:
    """A line where the planned batch is not the recipe's."""
    wanted, each = params.run.recipe_batch, params.run.batch * params.engine.accumulation
    if wanted is None or each * on.gpus == wanted:
        return []
    ways = [f"{wanted // each} GPUs"] if wanted % each == 0 else []
    split = _split(params, on.gpus, on, half, teacher)
    if split is not None:
        ways.append(f"here run.batch={split[0]} engine.accumulation={split[1]}")
    advice = " or ".join(ways) or "no number of micro-batches makes it on these GPUs"
    return [f"  NOT THE RECIPE'S {wanted:,}, which its rates and length are for: {advice}"]


def _smallest(params: TrainingParams, on: GpuCluster, half: bool, teacher: TrainingParams | None) -> str:
    """The fewest GPUs that hold the run, at the recipe's batch where there is one."""
    start = f"smallest number of {on.kind} whose memory holds it"
    for gpus in CLUSTERS:
        batch, micro = params.run.batch, params.engine.accumulation
        if params.run.recipe_batch is not None:
            split = _split(params, gpus, on, half, teacher)
            if split is None:
                continue
            batch, micro = split
        elif not _fits(sum(_memory(params, gpus, half, teacher).values()), on):
            continue
        how = f"run.batch {batch}, engine.accumulation {micro}: {batch * micro * gpus:,} images a step"
        return f"{start}: {gpus} ({how})"
    return f"{start}: more than {CLUSTERS[-1]}"
