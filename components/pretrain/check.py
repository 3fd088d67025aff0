"""``check``: can this machine train a preset, answered in seconds. What a cluster needs: components/planning."""

from __future__ import annotations

from pathlib import Path

from components.training.costs.capability import (
    GB,
    count_parameters,
    memory_per_rank,
    on_gpu,
    require,
    sixteen_bit,
    this_machine,
)
from components.training.launch import processes
from components.training.params import TrainingParams


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
