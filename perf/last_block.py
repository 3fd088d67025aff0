"""A step of vitt whose last block computes what losses read, against one that computes all rows.

``python -m perf last_block``. Forward of teacher and student and the backward pass, one thread, in turn, without the
engine. The quickest and the middle of each are compared, as processor time.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import torch

from components.learning.losses.ibot import masked_patches
from components.learning.masks import sample_masks
from components.learning.objective import Centering, build_network, losses
from components.params import load_params
from components.training.params import TrainingParams
from components.training.ranks.allocator import keep_freed_memory

PRESET = Path(__file__).resolve().parents[1] / "params" / "pretrain" / "vitt.yaml"


def main(rounds: int = 7) -> dict[str, object]:
    """Seconds of both, how many times quicker the shorter one is, and the largest relative difference of a gradient."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(load_params(PRESET, TrainingParams), rounds)
    finally:
        torch.set_num_threads(threads)


def _measure(params: TrainingParams, rounds: int) -> dict[str, object]:
    crops, batch = params.augment, params.run.batch
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(2 * batch, 3, crops.global_size, crops.global_size, generator=generator)
    small = torch.randn(crops.locals * batch, 3, crops.local_size, crops.local_size, generator=generator)
    masks = sample_masks(2 * batch, params.grid(), params.masks, np.random.default_rng(0))
    hidden = masked_patches(masks)
    network = build_network(params.vit, params.heads, 0)
    centering = Centering(params.objective, params.heads, torch.device("cpu"))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    gradients: dict[bool, list[torch.Tensor]] = {}
    for _ in range(rounds):
        for whole in (True, False):
            network.zero_grad()
            started = time.process_time()
            with torch.no_grad():
                teacher = network(large, patches=hidden.positions, dense=whole)
            student = network(large, small, masks, hidden.positions, dense=whole)
            targets = centering.targets(teacher, 0.04)
            losses(student, targets, hidden.weights, params.objective).total.backward()
            seconds[whole].append(time.process_time() - started)
            gradients[whole] = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    apart = [
        float((a - b).norm() / b.norm().clamp_min(1e-12))
        for a, b in zip(gradients[False], gradients[True], strict=True)
    ]
    return {
        "whole_seconds": round(min(seconds[True]), 3),
        "times_quicker": round(min(seconds[True]) / min(seconds[False]), 2),
        "times_quicker_by_medians": round(statistics.median(seconds[True]) / statistics.median(seconds[False]), 2),
        "largest_relative_difference_of_a_gradient": float(f"{max(apart):.1e}"),
    }
