"""The whole step of ViT-S/14 (2 x 224 + 8 x 98 px, four images): engine, plain loop of our modules, plain PyTorch.

``python -m perf whole_step``. One thread, processor time, in turn on the same batches. ``products`` is the part of our
plain step that lies in matrix products and attention: what no engine can leave out. A minute and a half.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from components.learning.collate import Crops
from components.learning.masks import sample_masks
from components.learning.schedules import Schedules, StepValues
from components.params import load_params
from components.pretrain.method import Pretraining
from components.training.params import TrainingParams
from components.training.ranks.allocator import keep_freed_memory
from components.training.ranks.distributed import join, pick_device
from perf._plain_step import PlainStep, Shape
from perf.engine import engine_loop, plain_loop

PRESET = Path(__file__).resolve().parents[1] / "params/pretrain/vits.yaml"
IMAGES, SHAPE = 4, Shape()
CHANGES = [
    *("engine.device=cpu", "engine.precision=auto", "run.activation_checkpointing=false", "run.iterations=100"),
    *(f"run.batch={IMAGES}", f"vit.patch_size={SHAPE.patch}", f"vit.drop_path={SHAPE.drop}", "augment.local_size=98"),
    *(f"heads.{head}.prototypes={SHAPE.prototypes}" for head in ("dino", "ibot")),
]
Step = Callable[[Crops, torch.Tensor, StepValues], object]
PRODUCTS = ("mm", "addmm", "bmm", "scaled_dot_product_flash_attention_for_cpu", "mkldnn_convolution")


def main(rounds: int = 4) -> dict[str, object]:
    """Medians of the three, their ratios, and the products' share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        return _measure(load_params(PRESET, TrainingParams, CHANGES), rounds)
    finally:
        torch.set_num_threads(threads)


def _measure(params: TrainingParams, rounds: int) -> dict[str, object]:
    plain = PlainStep(SHAPE)
    steps: dict[str, Step] = {
        "engine": engine_loop(Pretraining(params, join(pick_device("cpu")))),
        "our modules": plain_loop(params),
        "plain PyTorch": lambda crops, masks, at: plain(crops.globals, crops.locals, masks, at.momentum),
    }
    schedules = Schedules(params.schedule, params.run.iterations, IMAGES)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            inputs = (*_batch(params, number), schedules.at(number + 10))
            started = time.process_time()
            step(*inputs)
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    share = _products(lambda: steps["our modules"](*_batch(params, 0), schedules.at(10)))
    return {
        "seconds": {name: round(taken, 3) for name, taken in middle.items()},
        "engine_rate_over_plain_pytorch": round(middle["plain PyTorch"] / middle["engine"], 3),  # goal 1.15
        "our_modules_rate_over_plain_pytorch": round(middle["plain PyTorch"] / middle["our modules"], 3),
        "products_share_of_our_modules": round(share, 3),
    }


def _batch(params: TrainingParams, number: int) -> tuple[Crops, torch.Tensor]:
    generator, sizes = torch.Generator().manual_seed(number), params.augment
    crops = Crops(
        torch.randn(2 * IMAGES, 3, sizes.global_size, sizes.global_size, generator=generator),
        torch.randn(sizes.locals * IMAGES, 3, sizes.local_size, sizes.local_size, generator=generator),
    )
    return crops, sample_masks(2 * IMAGES, params.grid(), params.masks, np.random.default_rng(number))


def _products(step: Callable[[], object]) -> float:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events = found.key_averages()
    names = {f"aten::{name}" for name in PRODUCTS} | {f"aten::_{name}" for name in PRODUCTS}
    names |= {f"{name}_backward" for name in names}
    inside = sum(event.self_cpu_time_total for event in events if event.key in names)
    return float(inside / sum(event.self_cpu_time_total for event in events))
