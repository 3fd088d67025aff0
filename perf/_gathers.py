"""One of two processes of perf/gathers.py: elements gathered in forward and backward, and held at once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch

from components.params import load_params
from components.pretrain.method import Pretraining
from components.training.costs.memory import network_sizes
from components.training.params import TrainingParams
from components.training.ranks.distributed import join, pick_device
from components.training.sharded.engine import Engine
from perf._peak import VITT, train

BASE = ["run.batch=4", "vit.depth=8", "augment.locals=2"]
AGAIN = "run.activation_checkpointing=true"
GATHER = "_PartitionedParameterCoordinator__all_gather_params"  # DeepSpeed's one place that starts a gather


def gathers(params: TrainingParams, world: Any) -> dict[str, float]:
    """Of the last of four steps (DeepSpeed learns the order of modules in the first two), as shares of all elements."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    total, counts, networks = network_sizes(params.vit, params.heads).total, dict[str, int](), list[list[Any]]()
    gather, made, step = getattr(Coordinator, GATHER), Pretraining.__init__, Engine.step

    def held(parameters: Iterable[Any]) -> int:
        return sum(p.ds_numel for p in parameters if p.ds_status != ZeroParamStatus.NOT_AVAILABLE)

    def counting(self: Any, parameters: Iterable[Any], forward: bool) -> None:
        asked = set(parameters)
        student = any(p.requires_grad for p in asked)
        # blocks that are computed again gather by their forward, within backward
        back = not forward or torch._C._current_graph_task_id() != -1
        name = "teacher" if not student else "student, backward" if back else "student"
        new = sum(p.ds_numel for p in asked if p.ds_status == ZeroParamStatus.NOT_AVAILABLE)
        counts[name] = counts.get(name, 0) + new
        gather(self, asked, forward)
        both = [held(network) for network in networks]
        for name, size in (("held of the student", both[0]), ("held of both", sum(both))):
            counts[name] = max(counts.get(name, 0), size)

    def making(self: Pretraining, *args: Any) -> None:
        setattr(Coordinator, GATHER, gather)
        made(self, *args)
        networks[:] = [list(e.module.parameters()) for e in (self.engine.student, self.engine.average)]
        setattr(Coordinator, GATHER, counting)

    def stepping(self: Engine) -> Any:
        shares.append({name: round(count / total, 2) for name, count in counts.items()})
        counts.clear()
        return step(self)

    shares: list[dict[str, float]] = []
    Pretraining.__init__, Engine.step = making, stepping  # type: ignore[method-assign]
    try:
        train(params, world, 4)
    finally:
        Pretraining.__init__, Engine.step = made, step  # type: ignore[method-assign]
        setattr(Coordinator, GATHER, gather)
    return shares[-1]


def main() -> None:
    """With room for all elements, and for half of them; with blocks computed again, too."""
    torch.set_num_threads(1)
    world = join(pick_device("cpu"))
    found = {}
    for more in ([], [AGAIN]):
        for share in (1.0, 0.5):
            params = load_params(VITT, TrainingParams, [*BASE, *more])
            total = network_sizes(params.vit, params.heads).total
            room = int(share * total)
            zero = {"stage3_max_live_parameters": room, "stage3_max_reuse_distance": room}
            zero |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": total // 20}
            own = params.model_copy(update={"engine": params.engine.model_copy(update={"zero": zero})})
            found[f"room for {share:.0%}{', blocks again' if more else ''}"] = gathers(own, world)
    if world.main:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
