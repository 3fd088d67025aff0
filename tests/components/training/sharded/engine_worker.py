"""The ranks of the engine's tests: ``engine_worker.py FOLDER``; results go to FOLDER/RANKS/PRECISION-rank-N.pt.

Runs the tiny pretraining method on its slice of fixed global batches in fp32 and in fp16, then the faults, and goes on
from the checkpoints that the launches with other numbers of ranks, which run beside it, leave in FOLDER.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import launch
from torch import Tensor

import components.training.sharded.engine as engine_module
from components.learning.collate import Crops
from components.learning.objective import HeadsParams, Network, build_network
from components.learning.schedules import Schedules
from components.learning.vit import ViTConfig
from components.pretrain.method import Pretraining
from components.training.checkpoints.checkpoint import Checkpoint, Checkpoints
from components.training.params import TrainingParams
from components.training.ranks.distributed import World, gather_shards, join, pick_device
from components.training.session import gather_average
from components.training.sharded.engine_params import EngineParams
from components.training.sharded.zero import deepspeed_for

STEPS, BATCH = 4, 8
MICROS = 2  # micro-batches of a step, where there are several
SAVED = 2  # the step of the checkpoint
PRECISIONS = {1: ("fp32",), 2: ("fp32", "fp16", "bf16"), 4: ("fp32", "fp16")}  # by number of ranks
# (number of ranks, precision) -> numbers of ranks whose checkpoints are gone on from
ELASTIC = {
    (1, "fp32"): (2,),
    (2, "fp32"): (1, 4),
    (2, "fp16"): (4,),
    (2, "bf16"): (),
    (4, "fp32"): (2,),
    (4, "fp16"): (2,),
}

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


def own(part: Tensor, world: World, micro: int = 0, micros: int = 1) -> Tensor:
    """This rank's images of a micro-batch of [views, B, ...], flattened view by view."""
    size = BATCH // world.size // micros
    first = (micro * world.size + world.rank) * size
    return part[:, first : first + size].flatten(0, 1)


def learner(world: World, precision: str, **engine: Any) -> Pretraining:
    # half precision also computes blocks again in backward: the same numbers must come out
    run = {"batch": BATCH // world.size, "activation_checkpointing": precision == "fp16"}
    update = {"run": PARAMS.run.model_copy(update=run), "engine": PARAMS.engine.model_copy(update=engine)}
    params = PARAMS.model_copy(update=update)
    return Pretraining(params, world, lively_network(params.vit, params.heads, params.run.seed))


def masters(method: Pretraining, kind: str = "master") -> dict[str, Tensor]:
    """The masters (or "exp_avg", "exp_avg_sq"), whole."""
    shards, _ = method.engine.state()
    shapes = method.engine.shapes()
    return {
        name: gather_shards(shards[f"{kind}/{name}"])[: shapes[name].numel()].view(shapes[name]).clone()
        for name in shapes
    }


def advance(method: Pretraining, world: World, steps: range, poison: str = "") -> list[dict[str, float]]:
    """Train ``steps``; ``poison`` "loss" or "gradient": that of rank 0 is not finite."""
    schedules = Schedules(PARAMS.schedule, STEPS, BATCH)
    rows = []
    for step in steps:
        values = schedules.at(step)
        method.engine.set_rates(values.learning_rate, values.weight_decay, values.last_layer_learning_rate)
        globals_, locals_, masks = (own(part, world) for part in global_batch(step))
        found, _ = method.masked_losses(Crops(globals_, locals_), masks, values)
        loss = found.total
        if poison == "loss" and world.rank == 0:
            loss = loss * float("nan")
        elif poison == "finite gradient" and world.rank == 0:
            loss = loss + float("inf")
        elif poison == "gradient" and world.rank == 0:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        method.engine.backward(loss)
        report = method.engine.step()
        if not report.skipped:
            method.engine.ema.update(values.momentum)
        bad = report.bad_losses
        row = {"loss": float(found.total.detach()), "skipped": report.skipped, "scale": report.loss_scale, "bad": bad}
        rows.append(row | report.norms)
        method.engine.require_progress()
    return rows


REFUSED: tuple[dict[str, Any], ...] = (
    {"zero_quantized_weights": True},
    {"zero_hpz_partitions": 2},
    {"leaf_module": 3},
    {"offload_optimizer": {"device": "nvme"}},
    {"offload_param": {"device": "moon"}},
    {"reduce_bucket_size": "many"},
)


def restore(world: World, precision: str, folder: Path, **engine: Any) -> tuple[Pretraining, int]:
    """A new learner with the state of the newest checkpoint in ``folder``, and its step."""
    method = learner(world, precision, **engine)
    lengths = {name: shard.numel() for name, shard in method.engine.ema.state().items()}
    state = Checkpoints(folder, "f", world).load(lengths)
    assert state is not None
    method.engine.load(state.shards, state.shared["engine"])
    return method, state.step


def state_of(method: Pretraining) -> dict[str, Any]:
    """Everything a checkpoint holds, whole."""
    ema = {
        name: gather_shards(shard)[: method.engine.shapes()[name].numel()].clone()
        for name, shard in method.engine.ema.state().items()
    }
    kinds = ("master", "exp_avg", "exp_avg_sq")
    return {kind: masters(method, kind) for kind in kinds} | {"ema": ema, "rest": method.engine.state()[1]}


def reduced_gradients(world: World, precision: str, **engine: Any) -> dict[str, dict[str, Tensor]]:
    """A step's gradients of a head's and of a backbone's weight: as reduced, and the fp32 mean over the ranks."""
    method = learner(world, precision, **engine)
    names = ("dino_head.mlp.0.weight", "backbone.embeddings.patch_embed.proj.weight")
    seen: dict[str, Tensor] = {}
    parameters = dict(method.network.named_parameters())
    names = tuple(name if name in parameters else next(n for n in parameters if "patch_embed" in n) for name in names)

    def keep(name: str) -> Any:
        return lambda gradient: seen.__setitem__(name, gradient.detach().float().clone())

    for name in names:
        parameters[name].register_hook(keep(name))
    values = Schedules(PARAMS.schedule, STEPS, BATCH).at(0)
    globals_, locals_, masks = (own(part, world) for part in global_batch(0))
    method.engine.backward(method.masked_losses(Crops(globals_, locals_), masks, values)[0].total)
    zero, found = method.engine.student.optimizer, {}
    for index, group in enumerate(zero.fp16_groups):
        for parameter, shard in zip(group, zero.averaged_gradients[index], strict=True):
            for name in names:
                if parameter is parameters[name]:
                    found[name] = gather_shards(shard)[: seen[name].numel()].view_as(seen[name]).clone()
    for name in names:
        dist.all_reduce(seen[name])
        seen[name] /= world.size
    return {"reduced": found, "exact": seen}


def run(folder: Path, world: World, precision: str) -> dict[str, Any]:
    engine_module.pick_precision = lambda asked, device: precision  # type: ignore[assignment]
    method = learner(world, precision)
    result: dict[str, Any] = {"start": masters(method)}

    # A gathered moving average beside the sharded one.
    plain = masters(method)
    rows = []
    schedules = Schedules(PARAMS.schedule, STEPS, BATCH)
    place = folder / str(world.size) / precision
    for step in range(STEPS):
        rows += advance(method, world, range(step, step + 1))
        if not rows[-1]["skipped"]:
            momentum = schedules.at(step).momentum
            for name, value in masters(method).items():
                plain[name] = plain[name] * momentum + value * (1 - momentum)
        if step + 1 == SAVED:
            result["saved"] = state_of(method)
            shards, rest = method.engine.state()
            Checkpoints(place, "f", world).save(Checkpoint(SAVED, shards, {"engine": rest}))
    result |= {"rows": rows, "masters": masters(method), "plain_ema": plain, "bytes": method.engine.bytes_held()}
    result["ema"] = gather_average(method.engine)
    with torch.no_grad():
        shapes, average = method.engine.shapes(), method.engine.ema.state()
        result["published"] = True
        for name, p in method.engine.average.module.named_parameters():
            # What pads the last ranks' shards is memory as it was found, NaN now and then.
            size = p.ds_tensor.numel()
            own_size = min(max(shapes[name].numel() - world.rank * size, 0), size)
            shard = average[name][:own_size].to(p.dtype)
            result["published"] &= torch.equal(p.ds_tensor.data[:own_size], shard)
        crop = own(global_batch(0)[0], world).to(method.engine.dtype)
        result["teacher_cls"] = method.engine.average(crop).cls.float()

    # Stop and resume: a new engine from the checkpoint.
    resumed, step = restore(world, precision, place)
    result["resumed_rows"] = advance(resumed, world, range(step, STEPS))
    result["resumed"] = masters(resumed)
    result["resumed_ema"] = gather_average(resumed.engine)

    # A loss or gradient of one rank that is not finite skips the step on all.
    before = masters(resumed)
    result["bad gradient"] = advance(resumed, world, range(2, 3), "gradient")
    result["bad loss"] = advance(resumed, world, range(2, 3), "loss")
    if precision == "fp16":  # the overflow lowered the loss scale, and does not count
        advance(resumed, world, range(2, 3), "loss")
    try:
        result["bad loss only"] = advance(resumed, world, range(2, 3), "finite gradient")
        result["stopped"] = ""
    except engine_module.VitrailError as fault:
        result["stopped"] = str(fault)
    result["unharmed"] = all(torch.equal(before[name], value) for name, value in masters(resumed).items())

    if world.size == 2 and precision == "fp16":
        result["gradients"] = {kind: reduced_gradients(world, precision, reduce_dtype=kind) for kind in REDUCTIONS}
        result |= overflowing(world)
    if world.size == 2 and precision == "fp32":
        result |= accumulated(world) | {"full": fills_up(world, place)}
    if world.size == 1 and precision == "fp32":
        result["refused"] = {}
        for zero in REFUSED:
            try:
                advance(learner(world, precision, zero=zero), world, range(1))
            except engine_module.VitrailError as fault:
                result["refused"][next(iter(zero))] = str(fault)
    if world.size == 4 and precision == "fp32":  # ZeRO++: a second partition within each pair of ranks
        zero = {"zero_hpz_partition_size": 2, "stage3_param_persistence_threshold": 0}
        method, step = restore(world, precision, place, zero=zero)
        result["hpz rows"] = advance(method, world, range(step, STEPS))
        result["hpz"] = masters(method)
    return result


def accumulated(world: World) -> dict[str, Any]:
    """A step of two micro-batches that hold different halves of the global batch."""
    method = learner(world, "fp32", accumulation=MICROS)
    schedules, rows = Schedules(PARAMS.schedule, STEPS, BATCH), []
    for step in range(STEPS):
        values = schedules.at(step)
        method.engine.set_rates(values.learning_rate, values.weight_decay, values.last_layer_learning_rate)
        loss = 0.0
        for micro in range(MICROS):
            globals_, locals_, masks = (own(part, world, micro, MICROS) for part in global_batch(step))
            found, _ = method.masked_losses(Crops(globals_, locals_), masks, values)
            method.engine.backward(found.total)
            loss += float(found.total.detach()) / MICROS
            if micro + 1 < MICROS:
                method.engine.micro_step()
        rows.append({"loss": loss} | method.engine.step().norms)
        method.engine.ema.update(values.momentum)
    return {"accumulated": {"rows": rows, "masters": masters(method), "ema": gather_average(method.engine)}}


def fills_up(world: World, place: Path) -> dict[str, Any]:
    """The disk of the second rank is full when a checkpoint is written, and has room again for the next."""
    import safetensors.torch

    save, store, said = safetensors.torch.save_file, Checkpoints(place.with_name("full"), "f", world), ""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def state(step: int) -> Checkpoint:
        return Checkpoint(step, {"ema/w": torch.full((3,), float(step + world.rank))}, {})

    store.save(state(1))
    if world.rank == 1:
        safetensors.torch.save_file = full
    try:
        store.save(state(2))
    except engine_module.VitrailError as fault:
        said = str(fault)
    safetensors.torch.save_file = save
    dist.barrier()
    left = sorted(path.name for path in store.folder.iterdir())
    found = store.load({"w": 3})
    assert found is not None
    dist.barrier()
    store.save(state(3))
    after = sorted(path.name for path in store.folder.iterdir())
    return {"said": said, "left": left, "step": found.step, "after": after}


def overflowing(world: World) -> dict[str, Any]:
    """fp16 gradients that overflow step after step, at the default scale and limit, and from the largest scale."""
    own = EngineParams()
    fixed = {"loss_scale_power": own.loss_scale_power, "max_skipped": own.max_skipped}
    ended, method, scales = "", learner(world, "fp16", **fixed), []
    while not ended and len(scales) < 100:
        try:
            scales += [row["scale"] for row in advance(method, world, range(1), "gradient")]
        except engine_module.VitrailError as fault:
            ended = str(fault)
    high = learner(world, "fp16", loss_scale_power=32, max_skipped=own.max_skipped)
    for _ in range(own.max_skipped + 5):
        advance(high, world, range(1), "gradient")
    return {"overflowing": {"ended": ended, "scales": scales, "after": advance(high, world, range(1))}}


REDUCTIONS = ("heads_fp32", "same", "fp32")


def go_on_from(folder: Path, world: World, precision: str) -> dict[int, Any]:
    """From the checkpoints of other numbers of ranks: their state as taken over, and the weights at the end."""
    engine_module.pick_precision = lambda asked, device: precision  # type: ignore[assignment]
    found = {}
    for ranks in ELASTIC[world.size, precision]:
        foreign = folder / str(ranks) / precision
        until = time.monotonic() + 800  # the other launch is on its way
        while not (foreign / f"step-{SAVED:08d}").is_dir():
            assert time.monotonic() < until, f"no checkpoint of {ranks} ranks"
            time.sleep(0.1)
        method, step = restore(world, precision, foreign)
        taken = state_of(method)
        rows = advance(method, world, range(step, STEPS))
        found[ranks] = {"taken": taken, "masters": masters(method), "rows": rows}
    return found


def main(folder: Path) -> None:
    """What one rank does."""
    torch.set_num_threads(1)
    world = join(pick_device("cpu"))
    results = {precision: run(folder, world, precision) for precision in PRECISIONS[world.size]}
    needless = sorted({"mlflow", "torch._inductor.compile_fx"} & sys.modules.keys())
    for precision, result in results.items():
        result |= {"needless": needless, "elastic": go_on_from(folder, world, precision)}
        torch.save(result, folder / str(world.size) / f"{precision}-rank-{world.rank}.pt")


if __name__ == "__main__":
    # Imported before the ranks are forked. DeepSpeed collects garbage at every engine: not again through all of it.
    deepspeed_for(torch.device("cpu"))
    import torch._dynamo  # every optimizer imports it
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    place = Path(sys.argv[1])
    for size in PRECISIONS:
        (place / str(size)).mkdir(parents=True)
    launch(lambda: main(place), list(PRECISIONS), place)
