"""A training step with compiled blocks against an eager one, on a CPU, through the engine.

``python -m perf compiled``. Two learners of equal weights take the same steps in turn; of each the quickest is given,
as processor time of one thread, which a busy machine changes little.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from components.learning.collate import Crops
from components.learning.schedules import Schedules
from components.params import load_params
from components.pretrain.method import Pretraining
from components.training.params import TrainingParams
from components.training.ranks.allocator import keep_freed_memory
from components.training.ranks.distributed import join, pick_device

PRESETS = Path(__file__).resolve().parents[1] / "params" / "pretrain"
CPU = ("engine.device=cpu", "engine.precision=fp32")
RUNS = {
    "vitt": (*CPU, "run.batch=64"),
    "vits": (*CPU, "run.batch=2", "engine.accumulation=1", "heads.dino.prototypes=1024"),
    "vits, drop path 0": (
        *CPU,
        "run.batch=2",
        "engine.accumulation=1",
        "heads.dino.prototypes=1024",
        "vit.drop_path=0.0",
    ),
}


def measure(preset: str, changes: tuple[str, ...], rounds: int) -> dict[str, float]:
    """Seconds of a step of both kinds, their ratio, and the largest relative difference of a loss."""
    world = join(pick_device("cpu"))
    params = load_params(PRESETS / f"{preset}.yaml", TrainingParams, changes)
    crops, run = params.augment, params.run
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(2 * run.batch, 3, crops.global_size, crops.global_size, generator=generator)
    small = torch.randn(crops.locals * run.batch, 3, crops.local_size, crops.local_size, generator=generator)
    values = Schedules(params.schedule, run.iterations, 64).at(run.iterations // 2)
    learners = {
        name: Pretraining(
            params.model_copy(update={"run": run.model_copy(update={"compile": name == "compiled"})}), world
        )
        for name in ("eager", "compiled")
    }
    best, first = dict.fromkeys(learners, float("inf")), dict.fromkeys(learners, 0.0)
    losses: dict[str, list[float]] = {name: [] for name in learners}
    for number in range(rounds + 1):
        for name, learner in learners.items():
            started, wall = time.process_time(), time.perf_counter()
            learner.seed_step(number)
            found, _ = learner.losses(Crops(large, small), values, np.random.default_rng(number))
            learner.engine.set_rates(1e-4, 0.04)
            learner.engine.backward(found.total)
            learner.engine.step()
            learner.engine.ema.update(0.99)
            losses[name].append(float(found.total.detach()))
            if number:  # the first step compiles
                best[name] = min(best[name], time.process_time() - started)
            else:
                first[name] = time.perf_counter() - wall
    apart = [abs(a - b) / abs(a) for a, b in zip(*losses.values(), strict=True)]
    return {
        "eager_seconds": round(best["eager"], 3),
        "compiled_over_eager": round(best["compiled"] / best["eager"], 3),
        "first_step_seconds_compiled": round(first["compiled"], 1),
        "largest_relative_difference_of_a_loss": float(f"{max(apart):.1e}"),
    }


def main(rounds: int = 5) -> dict[str, object]:
    """The figures of every preset."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: measure(name.partition(",")[0], changes, rounds) for name, changes in RUNS.items()}
    finally:
        torch.set_num_threads(threads)
