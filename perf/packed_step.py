"""Packed forward and backward of ViT-S/14 against a plain fp32 GEMM, and what stochastic depth saves.

``python -m perf packed_step``. Two images, 2 x 224 + 8 x 98 px each. The rates are taken in turn, round by
round, so that a machine whose clock wanders moves all of them; of each the median is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from components.learning.masks import MaskParams, sample_masks
from components.learning.vit import VisionTransformer, ViTConfig, vit_config

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


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


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


def main(rounds: int = 7) -> dict[str, float]:
    """Figures of this machine: rates in GFLOP/s, and the two ratios that the design must hold."""
    config = vit_config("vits", GLOBAL, 14)
    plain = stepper(VisionTransformer(config).train())
    dropping = stepper(VisionTransformer(config.model_copy(update={"drop_path": 0.4})).train())
    a, b, out = torch.randn(4096, 4096), torch.randn(4096, 4096), torch.empty(4096, 4096)
    runs: dict[str, Callable[[], object]] = {
        "gemm": lambda: torch.mm(a, b, out=out),
        "step": plain,
        "drop": dropping,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            took = timed(run)
            if number:  # the first round warms up
                seconds[name].append(took)
    gemm, step, drop = (float(np.median(seconds[name])) for name in ("gemm", "step", "drop"))
    side, small = GLOBAL // config.patch_size, LOCAL // config.patch_size
    flops = step_flops(config, [(2 * IMAGES, side * side), (LOCALS * IMAGES, small * small)])
    gemm_rate, step_rate = 2 * 4096**3 / gemm / 1e9, flops / step / 1e9
    return {
        "threads": torch.get_num_threads(),
        "gemm_gflops": round(gemm_rate, 1),
        "step_gflops": round(step_rate, 1),
        "step_seconds": round(step, 3),
        "step_over_gemm_rate": round(step_rate / gemm_rate, 3),  # at least 0.80
        "drop_path_0.4_over_0": round(drop / step, 3),  # at most 0.75
    }
