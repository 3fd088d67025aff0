"""``check``: can this machine train a preset, answered in seconds; ``plan``: what a cluster needs for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from components.errors import VitrailError, nearest
from components.progress import duration
from components.training.capability import (
    GB,
    count_parameters,
    memory_per_rank,
    on_gpu,
    require,
    sixteen_bit,
    this_machine,
    tokens_per_rank,
)
from components.training.flops import bytes_moved, flops_per_step
from components.training.launch import processes
from components.training.params import TrainingParams

TF32 = 0.5  # share of that peak that products of fp32 matrices reach (vendor's data sheets)


class Gpu(NamedTuple):
    """A kind of GPU: memory in bytes, peak 16-bit dense rate in FLOP/s (vendor's data sheet)."""

    memory: float
    peak: float


GPUS = {
    "a100-40gb": Gpu(40e9, 312e12),
    "a100-80gb": Gpu(80e9, 312e12),
    "h100-80gb": Gpu(80e9, 989e12),
    "h200-141gb": Gpu(141e9, 989e12),
    "l40s-48gb": Gpu(48e9, 362e12),
}


def check(path: Path, params: TrainingParams) -> str:
    """A line that says that the preset fits, and how tightly.

    Raises:
        VitrailError: it does not fit.
    """
    machine = this_machine()
    ranks = processes(params, machine)
    require(path, params, ranks, here=ranks)
    gpu = on_gpu(params, machine)
    need = sum(memory_per_rank(params, ranks, sixteen_bit(params, gpu), gpu=gpu).values())
    count = sum(count_parameters(params).values())
    each = "a process" if ranks == 1 else f"in each of the {ranks} processes that run starts here"
    return f"{path}: fits: {count / 1e6:.1f} M parameters, about {need / GB:.1f} GB {each}; found {machine}"


CLUSTERS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # numbers of GPUs that are tried


def plan(
    path: Path,
    params: TrainingParams,
    gpus: int,
    kind: str,
    utilisation: float,
    rate: float | None = None,
    price: float | None = None,
    first: int = 0,
) -> str:
    """What a run on ``gpus`` GPUs of ``kind`` takes: memory by part, tokens, FLOPs and bytes moved a step, time, cost.

    Args:
        utilisation: share of the GPU's peak that training reaches; where no rate is given.
        rate: images a second and GPU, as measured (``images_per_second`` of a run's curves over its GPUs).
        price: of a GPU-hour, in any currency.
        first: steps trained in an earlier phase.

    Raises:
        VitrailError: an unknown kind of GPU.
    """
    if kind not in GPUS:
        raise VitrailError(f"--gpu {kind}: known are {', '.join(GPUS)}{nearest(kind, list(GPUS))}")
    gpu, counts, half = GPUS[kind], count_parameters(params), sixteen_bit(params, gpu=True)
    parts, moved = memory_per_rank(params, gpus, half, gpu=True), bytes_moved(params, gpus, half)
    flops, need = flops_per_step(params, gpus), sum(parts.values())
    micro = params.engine.accumulation
    batch, tokens = params.run.batch * gpus * micro, tokens_per_rank(params) * gpus * micro
    peak = gpus * gpu.peak * (1 if half else TF32)
    stretches = _stretches(params, flops, first)
    if rate is None:
        basis = f"at {utilisation:.0%} of {kind}'s peak"
        times = [sum(work.values()) / (peak * utilisation) for _, work in stretches]
    else:
        times = [batch / (rate * gpus)] * len(stretches)
        basis = f"at {rate:g} images/s a GPU, {sum(flops.values()) / times[-1] / peak:.0%} of peak"
    seconds = sum(steps * time for (steps, _), time in zip(stretches, times, strict=True))
    hours = seconds * gpus / 3600
    cost = (
        "; --price of a GPU-hour gives the cost" if price is None else f", {hours * price:,.0f} at {price:g} a GPU-hour"
    )
    own = params.engine.precision if params.engine.precision != "auto" else "fp16"
    lines = [
        f"{path} on {gpus} x {kind}, {own} (shards to the byte; other memory, traffic and time estimated)",
        "parameters: " + ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in counts.items()),
        f"global batch: {batch:,} images ({gpus} GPUs x run.batch {params.run.batch} x engine.accumulation {micro}), "
        f"{tokens:,} student tokens a step",
        *_other_batch(params, gpus),
        f"memory a GPU: {need / GB:.1f} GB of {gpu.memory / GB:.0f} GB"
        + ("" if need <= 0.95 * gpu.memory else "  DOES NOT FIT"),
        *(f"  {name}: {size / GB:.3f} GB" for name, size in parts.items() if size),
        *(
            f"a step{when}: {sum(work.values()) / 1e12:.1f} TFLOP, about {time:.2f} s {basis}"
            for when, time, (_, work) in zip(_names(stretches), times, stretches, strict=True)
        ),
        *(f"  {name}: {work / 1e12:.3f} TFLOP" for name, work in flops.items()),
        f"each GPU sends and receives about {sum(moved.values()) / GB:.1f} GB a step",
        *(f"  {name}: {size / GB:.3f} GB" for name, size in moved.items() if size),
        f"the run: {params.run.iterations:,} steps, about {duration(seconds)}, {hours:,.0f} GPU-hours{cost}",
        _smallest(params, kind, half),
    ]
    return "\n".join(lines)


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


def _split(params: TrainingParams, gpus: int) -> tuple[int, int] | None:
    """``run.batch``, at most the preset's, and accumulation that make the recipe's batch on ``gpus``; None: none do."""
    each, left = divmod(params.run.recipe_batch or 0, gpus)
    if left or not each:
        return None
    micro = next(count for count in range(1, each + 1) if each % count == 0 and each // count <= params.run.batch)
    return each // micro, micro


def _other_batch(params: TrainingParams, gpus: int) -> list[str]:
    """A line where the planned batch is not the recipe's."""
    wanted, each = params.run.recipe_batch, params.run.batch * params.engine.accumulation
    if wanted is None or each * gpus == wanted:
        return []
    ways = [f"{wanted // each} GPUs"] if wanted % each == 0 else []
    split = _split(params, gpus)
    if split is not None:
        ways.append(f"here run.batch={split[0]} engine.accumulation={split[1]}")
    advice = " or ".join(ways) or "no number of micro-batches makes it on these GPUs"
    return [f"  NOT THE RECIPE'S {wanted:,}, which its rates and length are for: {advice}"]


def _smallest(params: TrainingParams, kind: str, half: bool) -> str:
    """The fewest GPUs that hold the run, at the recipe's batch where there is one."""
    for gpus in CLUSTERS:
        batch, micro = _split(params, gpus) or (params.run.batch, params.engine.accumulation)
        if params.run.recipe_batch is not None and _split(params, gpus) is None:
            continue
        own = params.model_copy(update={"run": params.run.model_copy(update={"batch": batch})})
        if sum(memory_per_rank(own, gpus, half, gpu=True).values()) <= 0.95 * GPUS[kind].memory:
            how = f"run.batch {batch}, engine.accumulation {micro}: {batch * micro * gpus:,} images a step"
            return f"smallest number of {kind} whose memory holds it: {gpus} ({how})"
    return f"smallest number of {kind} whose memory holds it: more than {CLUSTERS[-1]}"
