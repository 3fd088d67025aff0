"""One rank of the engine's tests: ``engine_worker.py OUT PRECISION [CHECKPOINTS]``; results go to OUT/rank-N.pt.

Runs the tiny pretraining method on its slice of fixed global batches, then the faults and the resumption.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import components.learning.engine as engine_module
from components.learning.checkpoint import Checkpoint, Checkpoints
from components.learning.collate import Crops
from components.learning.distributed import World, join, pick_device
from components.learning.objective import HeadsParams, Network, build_network
from components.learning.schedules import Schedules
from components.learning.session import gather_average
from components.learning.training import TrainingParams
from components.learning.vit import ViTConfig
from components.pretrain import method as method_module
from components.pretrain.method import Pretraining

STEPS, BATCH = 4, 8

PARAMS = TrainingParams.model_validate(
    {
        # odd sizes: shards of two ranks need padding
        "vit": {"image_size": 16, "patch_size": 4, "embed_dim": 18, "depth": 2, "heads": 2, "layerscale_init": 0.1},
        "heads": {
            "dino": {"prototypes": 37, "hidden": 24, "bottleneck": 12},
            "ibot": {"prototypes": 41, "hidden": 24, "bottleneck": 12},
        },
        "augment": {"global_size": 16, "local_size": 8, "locals": 2},
        "masks": {"min_patches": 1},
        "objective": {"koleo_over": "all"},
        "schedule": {
            "learning_rate": {"peak": 3e-3, "end": 1e-5, "warmup": 1},
            "learning_rate_rule": "none",
            "momentum": {"peak": 0.9, "end": 1.0},
            "freeze_last_layer": 1,
        },
        "groups": {"layer_decay": 0.9},
        "engine": {"device": "cpu", "clip": 0.5, "loss_scale_power": 10, "max_skipped": 3},
        "run": {"iterations": STEPS, "batch": BATCH},
    }
)


def lively_network(vit: ViTConfig, heads: HeadsParams, seed: int) -> Network:
    """A network whose images differ from the start: at 0.02 weights, neighbours and gradients hang on the last bit."""
    network = build_network(vit, heads, seed)
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() > 1 and value.shape[-1] > 1:
                value.mul_(8)
    return network


def global_batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Crops by view, [2, B, ...] and [L, B, ...], and masks [2, B, N] of the whole batch."""
    from components.learning.masks import sample_masks

    generator = torch.Generator().manual_seed(step)
    globals_ = torch.randn(2, BATCH, 3, 16, 16, generator=generator)
    locals_ = torch.randn(2, BATCH, 3, 8, 8, generator=generator)
    masks = sample_masks(2 * BATCH, PARAMS.grid(), PARAMS.masks, generator).view(2, BATCH, -1)
    return globals_, locals_, masks


def own(part: Tensor, world: World) -> Tensor:
    """This rank's images of [views, B, ...], flattened view by view."""
    size = BATCH // world.size
    return part[:, world.rank * size : (world.rank + 1) * size].flatten(0, 1)


def learner(world: World) -> Pretraining:
    # half precision also computes blocks again in backward: the same numbers must come out
    run = {"batch": BATCH // world.size, "activation_checkpointing": sys.argv[2] == "fp16"}
    params = PARAMS.model_copy(update={"run": PARAMS.run.model_copy(update=run)})
    return Pretraining(params, world)


def masters(method: Pretraining) -> dict[str, Tensor]:
    """The masters, whole."""
    from components.learning.distributed import gather_shards

    shards, _ = method.engine.state()
    shapes = method.engine.shapes()
    return {
        name: gather_shards(shards[f"master/{name}"])[: shapes[name].numel()].view(shapes[name]).clone()
        for name in shapes
    }


def advance(method: Pretraining, world: World, steps: range, poison: bool = False) -> list[dict[str, float]]:
    schedules = Schedules(PARAMS.schedule, STEPS, BATCH)
    rows = []
    for step in steps:
        values = schedules.at(step)
        method.engine.set_rates(values.learning_rate, values.weight_decay, values.last_layer_learning_rate)
        globals_, locals_, masks = (own(part, world) for part in global_batch(step))
        found, _ = method.masked_losses(Crops(globals_, locals_), masks, values)
        loss = found.total * float("nan") if poison and world.rank == 0 else found.total
        method.engine.backward(loss)
        report = method.engine.step()
        if not report.skipped:
            method.engine.ema.update(values.momentum)
        rows.append(
            {"loss": float(found.total.detach()), "skipped": report.skipped, "scale": report.loss_scale, **report.norms}
        )
    return rows


def main(out: Path, precision: str, foreign: Path | None) -> None:
    torch.set_num_threads(1)
    method_module.build_network = lively_network
    if precision != "fp32":
        engine_module.pick_precision = lambda asked, device: precision  # type: ignore[assignment]
        from deepspeed.accelerator import get_accelerator

        get_accelerator().is_fp16_supported = lambda: True
    world = join(pick_device("cpu"))
    method = learner(world)
    result: dict[str, object] = {"start": masters(method)}

    # A gathered moving average beside the sharded one.
    plain = masters(method)
    rows = []
    schedules = Schedules(PARAMS.schedule, STEPS, BATCH)
    checkpoints = Checkpoints(out / "checkpoints", "f", world)
    for step in range(STEPS):
        rows += advance(method, world, range(step, step + 1))
        if not rows[-1]["skipped"]:
            momentum = schedules.at(step).momentum
            for name, value in masters(method).items():
                plain[name] = plain[name] * momentum + value * (1 - momentum)
        if step == 1:
            shards, rest = method.engine.state()
            checkpoints.save(Checkpoint(step + 1, shards, {"engine": rest}))
    result |= {"rows": rows, "masters": masters(method), "plain_ema": plain}
    ema = gather_average(method.engine)
    result["ema"] = ema
    with torch.no_grad():
        result["published"] = bool(
            all(
                torch.equal(p.ds_tensor.data, method.engine.ema.state()[name].to(p.dtype))
                for name, p in method.engine.average.module.named_parameters()
            )
        )
        crop = own(global_batch(0)[0], world).to(method.engine.dtype)
        result["teacher_cls"] = method.engine.average(crop).cls.float()

    # Stop and resume: a new engine from the checkpoint of step 2.
    resumed = learner(world)
    lengths = {name: shard.numel() for name, shard in resumed.engine.ema.state().items()}
    state = checkpoints.load(lengths)
    assert state is not None
    resumed.engine.load(state.shards, state.shared["engine"])
    result["resumed_rows"] = advance(resumed, world, range(state.step, STEPS))
    result["resumed"] = masters(resumed)
    result["resumed_ema"] = gather_average(resumed.engine)

    # A poisoned loss on one rank skips the step on all.
    before = masters(resumed)
    result["poisoned"] = advance(resumed, world, range(2, 4), poison=True)
    result["unharmed"] = all(torch.equal(before[name], value) for name, value in masters(resumed).items())
    try:
        advance(resumed, world, range(2, 3), poison=True)
        result["stopped"] = ""
    except engine_module.VitrailError as fault:
        result["stopped"] = str(fault)

    if foreign is not None:  # of another number of ranks
        elastic = learner(world)
        state = Checkpoints(foreign, "f", world).load(lengths)
        assert state is not None
        elastic.engine.load(state.shards, state.shared["engine"])
        advance(elastic, world, range(state.step, STEPS))
        result["elastic"] = masters(elastic)
    torch.save(result, out / f"rank-{world.rank}.pt")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None)
