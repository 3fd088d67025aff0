"""``check``: can this machine train a preset, answered in seconds; ``plan``: what a cluster needs for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from components.errors import VitrailError, nearest
from components.learning.capability import (
    GB,
    bytes_moved,
    count_parameters,
    flops_per_step,
    memory_per_rank,
    on_gpu,
    require,
    sixteen_bit,
    this_machine,
    tokens_per_rank,
)
from components.learning.launch import processes
from components.learning.training import TrainingParams
from components.progress import duration


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
    need = sum(memory_per_rank(params, ranks, sixteen_bit(params, gpu)).values())
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
) -> str:
    """What a run on ``gpus`` GPUs of ``kind`` takes: memory by part, tokens, FLOPs and bytes moved a step, time, cost.

    Args:
        utilisation: share of the GPU's peak that training reaches; where no rate is given.
        rate: images a second and GPU, as measured (``images_per_second`` of a run's curves over its GPUs).
        price: of a GPU-hour, in any currency.

    Raises:
        VitrailError: an unknown kind of GPU.
    """
    if kind not in GPUS:
        raise VitrailError(f"--gpu {kind}: known are {', '.join(GPUS)}{nearest(kind, list(GPUS))}")
    gpu, counts = GPUS[kind], count_parameters(params)
    parts = memory_per_rank(params, gpus, sixteen_bit=True)
    flops, need = flops_per_step(params, gpus), sum(parts.values())
    batch = params.run.batch * gpus * params.engine.accumulation
    tokens = tokens_per_rank(params) * gpus * params.engine.accumulation
    if rate is None:
        seconds, basis = flops / (gpus * gpu.peak * utilisation), f"at {utilisation:.0%} of peak"
    else:
        seconds = batch / (rate * gpus)
        basis = f"at {rate:g} images/s a GPU, {flops / seconds / gpus / gpu.peak:.0%} of peak"
    hours = seconds * params.run.iterations * gpus / 3600
    enough = next((n for n in CLUSTERS if _fits(params, n, gpu)), None)
    lines = [
        f"{path} on {gpus} x {kind} (shards to the byte; other memory, traffic and time estimated)",
        "parameters: " + ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in counts.items()),
        f"global batch: {batch} images, {tokens:,} student tokens a step",
        f"memory a GPU: {need / GB:.1f} GB of {gpu.memory / GB:.0f} GB"
        + ("" if need <= 0.95 * gpu.memory else "  DOES NOT FIT"),
        *(f"  {name}: {size / GB:.3f} GB" for name, size in parts.items() if size),
        f"a step: {flops / 1e12:.1f} TFLOP, about {seconds:.2f} s {basis}; "
        f"each GPU sends and receives about {bytes_moved(params, gpus) / GB:.1f} GB",
        f"the run: {params.run.iterations:,} steps, about {duration(seconds * params.run.iterations)}, "
        f"{hours:,.0f} GPU-hours" + ("" if price is None else f", {hours * price:,.0f} at {price:g} a GPU-hour"),
        f"smallest number of {kind} whose memory holds it: {enough or f'more than {CLUSTERS[-1]}'}",
    ]
    return "\n".join(lines)


def _fits(params: TrainingParams, gpus: int, gpu: Gpu) -> bool:
    return sum(memory_per_rank(params, gpus, True).values()) <= 0.95 * gpu.memory
