"""``check``: can this machine train a preset, answered in seconds; ``plan``: what a cluster needs for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from components.errors import VitrailError, nearest
from components.learning.capability import (
    GB,
    count_parameters,
    flops_per_step,
    memory_per_rank,
    require,
    this_machine,
    tokens_per_rank,
)
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
    require(path, params)
    machine = this_machine()
    ranks = max(1, machine.gpus)
    need = sum(memory_per_rank(params, ranks, machine.gpus > 0).values())
    count = sum(count_parameters(params).values())
    return f"{path}: fits: {count / 1e6:.1f} M parameters, about {need / GB:.1f} GB a process; found {machine}"


def plan(path: Path, params: TrainingParams, gpus: int, kind: str, utilisation: float) -> str:
    """What a run on ``gpus`` GPUs of ``kind`` takes: memory by part, tokens and FLOPs a step, time at a given rate.

    Args:
        utilisation: share of the GPU's peak that training reaches.

    Raises:
        VitrailError: an unknown kind of GPU.
    """
    if kind not in GPUS:
        raise VitrailError(f"--gpu {kind}: known are {', '.join(GPUS)}{nearest(kind, list(GPUS))}")
    gpu, counts = GPUS[kind], count_parameters(params)
    parts = memory_per_rank(params, gpus, sixteen_bit=True)
    flops = flops_per_step(params, gpus)
    seconds = flops / (gpus * gpu.peak * utilisation)
    need = sum(parts.values())
    enough = next((n for n in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256) if _fits(params, n, gpu)), None)
    batch = params.run.batch * gpus * params.engine.accumulation
    tokens = tokens_per_rank(params) * gpus * params.engine.accumulation
    moved = 3 * 2 * sum(counts.values()) * (gpus - 1) / gpus + 2 * counts["backbone"]
    lines = [
        f"{path} on {gpus} x {kind} (states exact, activations and time estimated)",
        "parameters: " + ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in counts.items()),
        f"global batch: {batch} images, {tokens:,} student tokens a step",
        f"memory a GPU: {need / GB:.1f} GB of {gpu.memory / GB:.0f} GB"
        + ("" if need <= 0.95 * gpu.memory else "  DOES NOT FIT"),
        *(f"  {name}: {size / GB:.2f} GB" for name, size in parts.items() if size),
        f"a step: {flops / 1e12:.1f} TFLOP, about {seconds:.2f} s at {utilisation:.0%} of peak; "
        f"each GPU sends and receives about {moved / GB:.1f} GB",
        f"the run: {params.run.iterations:,} steps, about {duration(seconds * params.run.iterations)}, "
        f"{seconds * params.run.iterations * gpus / 3600:,.0f} GPU-hours",
        f"smallest number of {kind} whose memory holds it: {enough or 'more than 256'}",
    ]
    return "\n".join(lines)


def _fits(params: TrainingParams, gpus: int, gpu: Gpu) -> bool:
    return sum(memory_per_rank(params, gpus, True).values()) <= 0.95 * gpu.memory
