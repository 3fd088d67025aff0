"""One rank of perf/plan.py: peak memory of a step against what components.training.costs.memory says, for each change.

``python perf/_peak.py CHANGE ...``, a change being params that override vitt's, joined by commas. Rank 0 prints JSON.

What is counted: the tensors that live before the third step, and in it every allocation and release by torch's CPU
allocator as the profiler records them: their running sum's maximum. Interpreter, libraries and loader are in neither
measurement nor prediction.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from components.learning.collate import Crops
from components.learning.schedules import Schedules
from components.params import load_params
from components.pretrain.method import Pretraining
from components.training.costs.memory import memory_per_rank
from components.training.params import TrainingParams
from components.training.ranks.distributed import World, join, pick_device

VITT = Path(__file__).resolve().parents[1] / "params/pretrain/vitt.yaml"


def train(params: TrainingParams, world: World, steps: int = 3, method: Pretraining | None = None) -> Pretraining:
    """``steps`` steps on random crops, of ``method`` or of one made anew."""
    method, batch, crops = method or Pretraining(params, world), params.run.batch, params.augment
    schedules = Schedules(params.schedule, 10, batch)
    for step in range(steps):
        values = schedules.at(step + 2)
        method.engine.set_rates(values.learning_rate, values.weight_decay, values.last_layer_learning_rate)
        method.seed_step(step)
        side, small = crops.global_size, crops.local_size
        seen = Crops(torch.randn(2 * batch, 3, side, side), torch.randn(crops.locals * batch, 3, small, small))
        found, _ = method.losses(seen, values, np.random.default_rng(step), False)
        method.engine.backward(found.total)
        method.engine.step()
        method.engine.ema.update(values.momentum)
    return method


def alive() -> int:
    """Bytes of all tensors that Python can reach; between steps no others are held."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def peak(params: TrainingParams, world: World) -> dict[str, object]:
    """Measured and predicted bytes, and their parts: of the third step, when DeepSpeed has learnt the order of modules.

    What lives before it is counted apart: over several steps the profiler's sum drifts upwards on several processes
    (13 MB a step of 300), for it does not see what threads of gloo's free.
    """
    others = alive()  # of networks measured before, which DeepSpeed's hooks may hold
    method = train(params, world, 2)
    before = alive() - others
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        train(params, world, 1, method)
    assert recorded.profiler is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    running = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    parts = memory_per_rank(params, world.size, sixteen_bit=False)
    del parts["process"]
    measured, predicted = before + int(running.max()), sum(parts.values())
    held = sum(method.engine.bytes_held().values())
    method.engine.close()
    return {
        "measured_mb": round(measured / 1e6, 1),
        "predicted_over_measured": round(predicted / measured, 3),
        "shards_mb": round(held / 1e6, 1),
        "parts_mb": {name: round(size / 1e6, 1) for name, size in parts.items() if size},
    }


def main() -> None:
    """Measure every change on the command line."""
    torch.set_num_threads(1)
    world = join(pick_device("cpu"))
    found = {}
    for change in sys.argv[1:]:
        overrides = [part for part in change.split(",") if part != "vitt"]
        found[change] = peak(load_params(VITT, TrainingParams, overrides), world)
    if world.main:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
