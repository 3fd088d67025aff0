"""What the engine costs, for vitt on one thread: ZeRO-3 over one process against a plain loop of the same modules, the
moving average's share of a step, seconds to write, verify and take over a checkpoint.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from components.learning.collate import Crops
from components.learning.losses.ibot import masked_patches
from components.learning.masks import sample_masks
from components.learning.objective import Centering, build_network, losses
from components.learning.param_groups import param_groups
from components.learning.schedules import Schedules, StepValues
from components.params import load_params
from components.pretrain.method import Pretraining
from components.training.checkpoints.checkpoint import Checkpoint, Checkpoints
from components.training.params import TrainingParams
from components.training.ranks.allocator import keep_freed_memory
from components.training.ranks.distributed import World, join, pick_device

VITT = Path(__file__).resolve().parents[1] / "params/pretrain/vitt.yaml"


def plain_loop(params: TrainingParams) -> Callable[[Crops, torch.Tensor, StepValues], None]:
    """A step of ordinary modules, AdamW, clipping by sub-module, and a moving average."""
    student = build_network(params.vit, params.heads, params.run.seed)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    groups = param_groups(student, params.groups.layer_decay, params.groups.patch_embed_multiplier)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))
    centering = Centering(params.objective, params.heads, torch.device("cpu"))

    def step(crops: Crops, masks: torch.Tensor, values: StepValues) -> None:
        hidden = masked_patches(masks)
        with torch.no_grad():
            targets = centering.targets(teacher(crops.globals, patches=hidden.positions), values.teacher_temperature)
        output = student(crops.globals, crops.locals, masks, hidden.positions)
        losses(output, targets, hidden.weights, params.objective).total.backward()
        for child in student.children():
            nn.utils.clip_grad_norm_(child.parameters(), params.engine.clip)
        for group in optimizer.param_groups:
            group["lr"] = values.learning_rate * group["lr_multiplier"]
            group["weight_decay"] = values.weight_decay * group["wd_multiplier"]
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            averages = list(teacher.parameters())
            torch._foreach_mul_(averages, values.momentum)
            torch._foreach_add_(averages, list(student.parameters()), alpha=1 - values.momentum)

    return step


def engine_loop(method: Pretraining) -> Callable[[Crops, torch.Tensor, StepValues], float]:
    """The same step through the engine; returns the seconds of the moving average in it."""

    def step(crops: Crops, masks: torch.Tensor, values: StepValues) -> float:
        method.engine.set_rates(values.learning_rate, values.weight_decay, values.last_layer_learning_rate)
        found, _ = method.masked_losses(crops, masks, values)
        method.engine.backward(found.total)
        method.engine.step()
        before = time.process_time()
        method.engine.ema.update(values.momentum)
        return time.process_time() - before

    return step


def checkpoint_seconds(method: Pretraining, world: World) -> dict[str, float]:
    """Wall time of a save (synced to disk), and of finding, verifying and taking over what was saved."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "run", "perf", world)
        started = time.monotonic()
        shards, rest = method.engine.state()
        checkpoints.save(Checkpoint(1, shards, {"engine": rest}))
        saved = time.monotonic()
        lengths = {name: shard.numel() for name, shard in method.engine.ema.state().items()}
        state = checkpoints.load(lengths)
        assert state is not None
        method.engine.load(state.shards, state.shared["engine"])
        return {"save": round(saved - started, 3), "resume": round(time.monotonic() - saved, 3)}


def main(rounds: int = 15) -> dict[str, object]:
    """Medians of alternating steps on the same batches, processor time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        params = load_params(VITT, TrainingParams)
        world = join(pick_device("cpu"))
        method = Pretraining(params, world)
        plain, engine = plain_loop(params), engine_loop(method)
        batch, crops, schedules = params.run.batch, params.augment, Schedules(params.schedule, 100, params.run.batch)
        seconds: dict[str, list[float]] = {"plain": [], "engine": [], "average": []}
        for number in range(rounds + 3):
            generator = torch.Generator().manual_seed(number)
            seen = Crops(
                torch.randn(2 * batch, 3, crops.global_size, crops.global_size, generator=generator),
                torch.randn(crops.locals * batch, 3, crops.local_size, crops.local_size, generator=generator),
            )
            masks = sample_masks(2 * batch, params.grid(), params.masks, np.random.default_rng(number))
            values = schedules.at(number + 10)
            started = time.process_time()
            plain(seen, masks, values)
            between = time.process_time()
            average = engine(seen, masks, values)
            ended = time.process_time()
            if number >= 3:  # the first steps trace and warm up
                seconds["plain"].append(between - started)
                seconds["engine"].append(ended - between)
                seconds["average"].append(average)
        ratio = statistics.median(e / p for e, p in zip(seconds["engine"], seconds["plain"], strict=True))
        share = statistics.median(a / e for a, e in zip(seconds["average"], seconds["engine"], strict=True))
        return {
            "plain_step_seconds": round(statistics.median(seconds["plain"]), 3),
            "engine_over_plain": round(ratio, 3),  # at most 1.10
            "average_share_of_step": round(share, 4),  # at most 0.02
            "checkpoint_seconds": checkpoint_seconds(method, world),  # under 5 each
        }
    finally:
        torch.set_num_threads(threads)
