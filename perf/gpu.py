"""A whole training step on a GPU: time, memory and share of the dense matmul rate, for ViT-S, B, L and g.

``python -m perf gpu`` where there is a CUDA device. The same code runs on a CPU, small:
``python -m perf.gpu --device cpu --presets vitt --precisions fp32 --side 2048``. Presets of params/pretrain are taken
unchanged, their batch of one GPU with them, in bf16 and fp16: crops packed into one pass against one pass a size,
blocks eager against compiled. The step is one of ordinary modules, without DeepSpeed: the teacher's pass, the student's
forward and backward, the losses, clipping, AdamW on fp32 masters and the moving average; weights in 16 bits, as the
engine holds them.

Utilisation counts the matrix products that the network needs (:func:`step_flops`), whatever was computed besides, over
what the device does on one product of 8,192 x 8,192 in the same type in the same run.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from components.learning.heads import HeadConfig
from components.learning.losses.ibot import masked_patches
from components.learning.masks import sample_masks
from components.learning.objective import Centering, Network, build_network, losses
from components.learning.param_groups import param_groups
from components.learning.stochastic_depth import kept_samples
from components.learning.vit import VisionTransformer, ViTConfig
from components.params import load_params
from components.training.costs.flops import feed_forward_products
from components.training.params import TrainingParams
from components.training.sharded.compiled import compile_blocks

PRESETS = Path(__file__).resolve().parents[1] / "params" / "pretrain"
SIZES = ("vits", "vitb", "vitl", "vitg")
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WAYS = ("packed, eager", "separate, eager", "packed, compiled")
Way = Literal["packed, eager", "separate, eager", "packed, compiled"]
LOSS_SCALE = 2.0**12  # of fp16


def backbone_flops(vit: ViTConfig, groups: Sequence[tuple[int, int]], drop_path: float) -> tuple[int, int]:
    """Multiply-adds times two of a forward pass: of the blocks, and of the patch embedding.

    ``groups``: (samples, patches) a size of crops. Residuals are computed on the samples that are kept.
    """
    dim, blocks, embedding = vit.embed_dim, 0, 0
    feed_forward = feed_forward_products(vit)
    for samples, patches in groups:
        tokens, kept = patches + 1 + vit.registers, kept_samples(samples, drop_path)
        blocks += 2 * kept * tokens * (4 * dim * dim + feed_forward) + 4 * kept * tokens * tokens * dim
        embedding += 2 * samples * patches * 3 * vit.patch_size**2 * dim
    return vit.depth * blocks, embedding


def unread_flops(vit: ViTConfig, groups: Sequence[tuple[int, int]], hidden: int, drop_path: float) -> int:
    """Of a forward pass: what the last block need not do, for no loss reads it.

    Losses read every class token and the ``hidden`` patches. Other tokens need no projection and no feed-forward part.
    The tokens read are computed even where stochastic depth drops their sample.
    """
    kept = sum(kept_samples(samples, drop_path) * (patches + 1 + vit.registers) for samples, patches in groups)
    read = sum(samples for samples, _ in groups) + hidden
    return 2 * (kept - read) * (vit.embed_dim**2 + feed_forward_products(vit))


def head_flops(head: HeadConfig, in_dim: int, rows: int) -> int:
    """Of a head's forward pass on ``rows`` tokens."""
    widths = [in_dim, *[head.hidden] * (head.layers - 1), head.bottleneck, head.prototypes]
    return 2 * rows * sum(a * b for a, b in itertools.pairwise(widths))


def step_flops(params: TrainingParams, hidden: int) -> int:
    """Of a step with ``hidden`` masked patches: student forward and backward (twice as much again), teacher forward."""
    vit, crops, batch, heads = params.vit, params.augment, params.run.batch, params.heads
    large = (2 * batch, (crops.global_size // vit.patch_size) ** 2)
    small = (crops.locals * batch, (crops.local_size // vit.patch_size) ** 2)
    groups = [large, small] if crops.locals else [large]
    blocks, embedding = backbone_flops(vit, groups, vit.drop_path)
    blocks -= unread_flops(vit, groups, hidden, vit.drop_path)
    taught_blocks, taught_embedding = backbone_flops(vit, [large], 0.0)
    taught_blocks -= unread_flops(vit, [large], hidden, 0.0)
    ibot = head_flops(heads.ibot or heads.dino, vit.embed_dim, hidden)
    student = head_flops(heads.dino, vit.embed_dim, 2 * batch + crops.locals * batch) + ibot
    teacher = head_flops(heads.dino, vit.embed_dim, 2 * batch) + ibot
    # images need no gradient: the patch embedding's backward is as much as its forward
    return 3 * (blocks + student) + 2 * embedding + taught_blocks + taught_embedding + teacher


def pass_by_pass(backbone: VisionTransformer) -> None:
    """Let ``backbone`` run groups of crops one after the other instead of packed."""
    together = backbone.chosen

    def chosen(crops: Any, masks: Any, patches: Tensor | None) -> Any:
        parts = [
            together([group], [mask], patches if number == 0 else None)
            for number, (group, mask) in enumerate(zip(crops, masks, strict=True))
        ]
        return [classes[0] for classes, _ in parts], parts[0][1]

    backbone.chosen = chosen  # type: ignore[method-assign]


class Step:
    """A training step on random crops; calling it takes one and returns the loss, on the device."""

    def __init__(
        self, params: TrainingParams, network: Network, device: torch.device, precision: str, way: Way
    ) -> None:
        self.params, self.device, self.dtype = params, device, TYPES[precision]
        self.scale = LOSS_SCALE if precision == "fp16" else 1.0
        self.masters = copy.deepcopy(network).to(device)
        self.student = copy.deepcopy(self.masters).to(self.dtype).train()
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.average = [p.detach().clone() for p in self.masters.parameters()]
        groups = param_groups(self.masters, params.groups.layer_decay, params.groups.patch_embed_multiplier)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=device.type == "cuda")
        self.centering = Centering(params.objective, params.heads, device)
        if way == "separate, eager":
            pass_by_pass(self.student.backbone)
        elif way == "packed, compiled":
            compile_blocks(device, self.student.backbone, self.teacher.backbone)
        generator = torch.Generator().manual_seed(0)
        crops, batch = params.augment, params.run.batch
        self.large, self.small = (
            torch.randn(count, 3, side, side, generator=generator).to(device, self.dtype)
            for count, side in ((2 * batch, crops.global_size), (crops.locals * batch, crops.local_size))
        )
        masks = sample_masks(2 * batch, params.grid(), params.masks, np.random.default_rng(0))
        self.masks, self.hidden = masks.to(device), masked_patches(masks.to(device))

    def __call__(self) -> Tensor:
        """One step."""
        local = self.small if len(self.small) else None
        with torch.no_grad():
            targets = self.centering.targets(self.teacher(self.large, patches=self.hidden.positions), 0.07)
        output = self.student(self.large, local, self.masks, self.hidden.positions)
        loss = losses(output, targets, self.hidden.weights, self.params.objective).total
        (loss * self.scale).backward()
        self._update()
        return loss.detach()

    @torch.no_grad()
    def _update(self) -> None:
        masters, weights = list(self.masters.parameters()), list(self.student.parameters())
        for master, weight in zip(masters, weights, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float().div_(self.scale)
            weight.grad = None
        for child in self.masters.children():
            nn.utils.clip_grad_norm_(child.parameters(), self.params.engine.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(self.average, masters, 1 - self.params.schedule.momentum.peak)
        torch._foreach_copy_(weights, masters)
        torch._foreach_copy_(list(self.teacher.parameters()), self.average)


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Wall time of ``rounds`` calls, each until the device is done."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return found


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOPs a second of one dense product ``[side, side] @ [side, side]``, the quickest of ten."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / min(seconds(lambda: torch.mm(a, b, out=out), device, 10)[1:])


@dataclass(frozen=True)
class On:
    """Where steps are timed, in what precision."""

    device: torch.device
    precision: str
    rate: float  # FLOPs a second of a dense product
    rounds: int  # steps, of which the median counts


def measure(params: TrainingParams, network: Network, way: Way, on: On) -> dict[str, object]:
    """Figures of one step."""
    device, precision, rate, rounds = on.device, on.precision, on.rate, on.rounds
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        step = Step(params, network, device, precision, way)
        first = seconds(step, device, 3)  # compiles, warms up
        taken = statistics.median(seconds(step, device, rounds))
        loss = float(step())
    except torch.OutOfMemoryError:
        return {"left out": f"out of memory at a batch of {params.run.batch}"}
    flops = step_flops(params, len(step.hidden.positions))
    found: dict[str, object] = {
        "step_seconds": round(taken, 4),
        "images_per_second": round(params.run.batch / taken, 1),
        "model_tflops": round(flops / taken / 1e12, 3),
        "share_of_matmul_rate": round(flops / taken / rate, 3),  # at least 0.50 for L and g
        "first_step_seconds": round(first[0], 2),
        "loss": round(loss, 3),
    }
    if device.type == "cuda":
        found["peak_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    return found


def compare(ways: dict[str, Any]) -> dict[str, float]:
    """Time and memory of the other ways in terms of the packed, eager one."""
    base, found = ways[WAYS[0]], {}
    for way in WAYS[1:]:
        for key in ("step_seconds", "peak_memory_gb"):
            if key in base and key in ways.get(way, {}):
                found[f"{way} over {WAYS[0]}: {key}"] = round(ways[way][key] / base[key], 3)
    return found


@dataclass(frozen=True)
class Table:
    """What is timed."""

    presets: Sequence[str] = SIZES
    precisions: Sequence[str] = ("bf16", "fp16")
    ways: Sequence[Way] = WAYS
    changes: Sequence[str] = ()  # of every preset, as KEY=VALUE
    rounds: int = 10
    side: int = 8192  # of the dense product


def main(device: str = "cuda", timed: Table | None = None, kept: Path | None = None) -> dict[str, object]:
    """The table: preset, precision, way. Rows go to ``kept`` as they come, should the run be ended."""
    timed = timed or Table()
    if device == "cuda" and not torch.cuda.is_available():
        return {"left out": "no CUDA device"}
    place = torch.device(device)
    rates = {precision: matmul_rate(place, TYPES[precision], timed.side) for precision in timed.precisions}
    found: dict[str, Any] = {"dense_matmul_tflops": {name: round(rate / 1e12, 3) for name, rate in rates.items()}}
    for preset in timed.presets:
        params = load_params(PRESETS / f"{preset}.yaml", TrainingParams, timed.changes)
        network = build_network(params.vit, params.heads, 0)
        table: dict[str, Any] = {"batch": params.run.batch}
        found[preset] = table
        for precision in timed.precisions:
            on = On(place, precision, rates[precision], timed.rounds)
            rows: dict[str, Any] = table.setdefault(precision, {})
            for way in timed.ways:
                rows[way] = measure(params, network, way, on)
                print(f"{preset} {precision} {way}: {rows[way]}", flush=True)
                if kept:
                    kept.write_text(json.dumps(found))
            rows.update(compare(rows))
    if kept:
        kept.write_text(json.dumps(found))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Training steps on a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--presets", nargs="+", default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp16"], choices=list(TYPES))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE over every preset")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--side", type=int, default=8192, help="of the dense product")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    asked = Table(given.presets, given.precisions, given.ways, given.set, given.rounds, given.side)
    print(main(given.device, asked, given.json))
