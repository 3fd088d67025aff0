"""Packed forward and backward of ViT-S/14 against a plain fp32 GEMM, and what stochastic depth saves.

``python -m perf packed_step``. Two images, 2 x 224 + 8 x 98 px each. The rates are taken in turn, round by
round, so that a machine whose clock wanders moves all of them; of each the quickest is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from components.learning.masks import MaskParams, sample_masks
from components.learning.vit import VisionTransformer, ViTConfig, vit_config
from components.training.ranks.allocator import keep_freed_memory

IMAGES, GLOBAL, LOCAL, LOCALS = 2, 224, 98, 8


def step_flops(config: ViTConfig, groups: list[tuple[int, int]]) -> int:
    """Multiply-adds times two of the matrix products of a forward and backward pass; ``groups``: (samples, patches)."""
    dim, extra = config.embed_dim, 1 + config.registers
    hidden = int(dim * config.mlp_ratio)
    block = embed = 0
    for samples, patches in groups:
        tokens = patches + extra
        linear = samples * tokens * dim * (4 * dim + 2 * hidden)
        attention = 2 * samples * tokens * tokens * dim
        block += linear + attention
        embed += samples * patches * 3 * config.patch_size**2 * dim
    # backward is twice the forward pass; images need no gradient, so the patch embedding's is as much as its forward
    return 2 * (3 * config.depth * block + 2 * embed)


def cpu_seconds(run: Callable[[], object]) -> float:
    """Processor time of one call: of one thread it is the time that work took, whatever else the machine did."""
    start = time.process_time()
    run()
    return time.process_time() - start


def wall_seconds(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


PARTS = {
    "matrix products": ("mm", "addmm"),
    "attention": ("scaled_dot_product",),
    "gelu": ("gelu",),
    "norms": ("layer_norm",),
    "copies and joins": ("copy_", "cat", "index_select", "index_add", "fill_"),
    "sums, products, scales": ("add", "mul", "sum", "addcmul"),
}


def breakdown(step: Callable[[], object]) -> dict[str, float]:
    """Share of a step's time by kind of operation."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = dict.fromkeys([*PARTS, "other"], 0.0)
    for event in events:
        name = event.key.removeprefix("aten::").strip("_")
        exact = [part for part, names in PARTS.items() if any(name == n.strip("_") for n in names)]
        inside = [part for part, names in PARTS.items() if any(n in name for n in names if len(n) > 3)]
        shares[(exact or inside or ["other"])[0]] += event.self_cpu_time_total / total
    return {part: round(share, 3) for part, share in shares.items()}


def stepper(model: VisionTransformer) -> Callable[[], None]:
    """A forward and backward pass of student crops, masks included, as in training."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    crops = [
        torch.randn(2 * IMAGES, 3, GLOBAL, GLOBAL, generator=generator),
        torch.randn(LOCALS * IMAGES, 3, LOCAL, LOCAL, generator=generator),
    ]
    side = GLOBAL // config.patch_size
    mask = sample_masks(2 * IMAGES, (side, side), MaskParams(), np.random.default_rng(0))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        large, small = model(crops, [mask, None])
        loss = large.cls.square().mean() + large.patches.square().mean() + small.cls.square().mean()
        loss.backward()

    return step


def measure(rounds: int, seconds_of: Callable[[Callable[[], object]], float]) -> dict[str, float]:
    """Rates in GFLOP/s and the two ratios that the design must hold; the quickest of ``rounds`` interleaved turns."""
    config = vit_config("vits", GLOBAL, 14)
    a, b, out = torch.randn(4096, 4096), torch.randn(4096, 4096), torch.empty(4096, 4096)
    runs: dict[str, Callable[[], object]] = {
        "gemm": lambda: torch.mm(a, b, out=out),
        "step": stepper(VisionTransformer(config).train()),
        "drop": stepper(VisionTransformer(config.model_copy(update={"drop_path": 0.4})).train()),
    }
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            took = seconds_of(run)
            if number:  # the first round warms up
                best[name] = min(best[name], took)
    side, small = GLOBAL // config.patch_size, LOCAL // config.patch_size
    flops = step_flops(config, [(2 * IMAGES, side * side), (LOCALS * IMAGES, small * small)])
    gemm_rate, step_rate = 2 * 4096**3 / best["gemm"] / 1e9, flops / best["step"] / 1e9
    return {
        "gemm_gflops": round(gemm_rate, 1),
        "step_gflops": round(step_rate, 1),
        "step_seconds": round(best["step"], 3),
        "step_over_gemm_rate": round(step_rate / gemm_rate, 3),  # at least 0.80
        "drop_path_0.4_over_0": round(best["drop"] / best["step"], 3),  # at most 0.75
    }


def main(rounds: int = 6) -> dict[str, object]:
    """Figures of one thread (processor time: steady on a busy machine) and of all threads (wall time)."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    found: dict[str, object] = {f"{threads} threads, wall time": measure(rounds, wall_seconds)}
    torch.set_num_threads(1)
    try:
        found["1 thread, processor time"] = measure(rounds, cpu_seconds)
        found["share of time"] = breakdown(stepper(VisionTransformer(vit_config("vits", GLOBAL, 14)).train()))
    finally:
        torch.set_num_threads(threads)
    return found
