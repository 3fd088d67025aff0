"""The ranks of the tests of a run in two phases: ``phases_worker.py DATA``, a curated set.

One rank leaves its facts in DATA/one/facts-0.json, two leave theirs in DATA/two and also take over the scratch of one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ranks import launch
from stage_worker import TEACHER, digests
from torch import Tensor, nn

import components.pretrain.stage as stage
from components.context import StageContext
from components.errors import VitrailError
from components.evaluation.probing.online import Recorder
from components.learning.embed import interpolate_positions
from components.learning.vit import VisionTransformer, ViTConfig
from components.storage import StorageParams
from components.tracking import Run
from components.training.checkpoints.checkpoint import Checkpoint
from components.training.checkpoints.resolution import POSITIONS
from components.training.inputs import TrainingInputs
from components.training.params import TrainingParams
from components.training.ranks.distributed import gather_shards, join, pick_device
from components.training.sharded import compiled
from components.training.sharded.engine import Engine
from components.training.sharded.gram_teacher import GramTeacher
from components.training.sharded.zero import deepspeed_for

LARGER = {"size": 32, "local_size": 16, "iterations": 5, "learning_rate": 3e-4, "batch": 2, "accumulation": 3}
FIRST = TEACHER | {
    # heads that are not shared, a width whose shards need padding
    "vit": TEACHER["vit"] | {"embed_dim": 18, "heads": 2},
    "gram": {"teacher_at": 2, "start": 3, "refresh_every": 2, "refreshes": 2, "size": 24},  # taken at 2, 5 and 7
    "heads": TEACHER["heads"] | {"ibot": {"prototypes": 24, "hidden": 24, "bottleneck": 8}},
}


def positions(table: Tensor, vit: ViTConfig) -> Tensor:
    """A table of ``vit`` for the larger size, the class token's row kept."""
    side = LARGER["size"] // vit.patch_size  # type: ignore[operator]
    return torch.cat([table[:, :1], interpolate_positions(table[:, 1:], (side, side), vit.interpolation)], dim=1)


def whole(shard: Tensor, shape: torch.Size) -> Tensor:
    return gather_shards(shard)[: shape.numel()].view(shape)


class Switch:
    """Looks on as one phase hands its weights to the next."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self._carry_over = stage.carry_over

    @torch.no_grad()
    def __call__(
        self, state: Checkpoint, earlier: ViTConfig, engine: Engine, vit: ViTConfig, gram: GramTeacher | None
    ) -> None:
        self._carry_over(state, earlier, engine, vit, gram)
        assert gram is not None
        shapes = engine.shapes()
        table = torch.Size([1, 1 + (earlier.image_size // earlier.patch_size) ** 2, earlier.embed_dim])
        before: dict[str, dict[str, Tensor]] = {"master": {}, "ema": {}, "gram": {}}
        for key, shard in state.shards.items():
            kind, _, name = key.partition("/")
            if kind in before:
                before[kind][name] = whole(shard, table if name == POSITIONS else shapes[name])

        def held(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
            return {prefix + n: whole(p.ds_tensor.data, shapes[prefix + n]) for n, p in network.named_parameters()}

        def equal(found: Mapping[str, Tensor], kind: str) -> bool:
            wanted = {n: positions(v, earlier) if n == POSITIONS else v for n, v in before[kind].items()}
            return found.keys() == wanted.keys() and all(torch.equal(found[n], v) for n, v in wanted.items())

        student = {n: whole(s, shapes[n]) for n, s in engine._masters.items()}
        average = {n: whole(s, shapes[n]) for n, s in engine.ema.state().items()}
        self.facts["equal"] = [
            equal(student, "master"),
            equal(held(engine.student.module), "master"),
            equal(average, "ema"),
            equal(held(engine.average.module), "ema"),
            equal(held(gram._network.module, "backbone."), "gram"),
        ]
        self.facts["differ"] = len({float(before[kind][POSITIONS].sum()) for kind in before})
        self.facts["moments"] = len(engine._zero.optimizer.state)
        # what the teacher says of large crops is what it said of them before, interpolating on the fly
        small = VisionTransformer(earlier).eval()
        small.load_state_dict({n.removeprefix("backbone."): v for n, v in before["ema"].items() if "backbone" in n})
        crops = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            here, there = engine.average.module.backbone(crops), small(crops)
        self.facts["features"] = float((here.patches - there.patches).abs().max())


def main(data: Path, out: Path, earlier: Path | None) -> None:
    torch.set_num_threads(1)
    world = join(pick_device("cpu"))
    facts: dict[str, Any] = {}
    switch = stage.carry_over = Switch()  # type: ignore[assignment]

    def run(name: str, to: str, **change: Any) -> None:
        """One run of the stage; its outcome under ``name``."""
        content = json.loads(json.dumps(FIRST | {"high_resolution": LARGER} | change))
        inputs = TrainingInputs(
            preset=data / "params/teacher.yaml",
            curated=data / "curate",
            manifest=data / "manifest",
            benchmarks=data / "benchmarks.yaml",
        )
        context = StageContext(
            StorageParams(root=str(data)), None, report=out / to / "report.json", scratch=out / to / "scratch"
        )
        printed, raised = io.StringIO(), ""
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                stage.run(TrainingParams.model_validate(content), inputs, out / to / "model", context)
            except VitrailError as fault:
                raised = f"{type(fault).__name__}: {fault}"
        curve = out / to / "model" / "curve.json"
        facts[name] = {"raised": raised, "printed": printed.getvalue(), "files": digests(curve.parent)}
        facts[name]["curve"] = json.loads(curve.read_text()) if curve.exists() else None

    point = Recorder.point

    def terminate_at(step: int | None) -> None:
        def stopping(self: Recorder, at: int, figures: Mapping[str, float]) -> None:
            point(self, at, figures)
            if at == step and world.main:
                os.kill(os.getpid(), signal.SIGTERM)

        Recorder.point = stopping  # type: ignore[method-assign]

    images: list[tuple[str, int, tuple[int, ...]]] = []
    nothing = Run.log_image
    Run.log_image = lambda _, image, key, step=0: images.append((key, step, image.shape))  # type: ignore[method-assign]
    run("unbroken", "a")
    Run.log_image = nothing  # type: ignore[method-assign]
    facts["images"] = images
    facts["switch"] = dict(switch.facts)
    if earlier is None:  # one rank: enough for what does not depend on their number
        terminate_at(4)
        run("stopped in the first", "b")
        terminate_at(6)
        run("stopped between them", "b")
    terminate_at(8)
    run("stopped in the second", "b")
    terminate_at(None)
    run("resumed", "b")
    if earlier is not None:
        if world.main:
            shutil.copytree(earlier, out / "c" / "scratch")
            shutil.rmtree(out / "c" / "scratch" / "model" / "high-resolution")
        torch.distributed.barrier()
        switch.facts.clear()
        run("other ranks", "c")
        facts["elastic switch"] = dict(switch.facts)
        compiled.BACKEND = "eager"  # traced, then run as it stands: without a minute of C++ to build
        alone = {"high_resolution": None, "gram": None, "probe": {"benchmark": None}}
        run("compiled", "d", run=FIRST["run"] | {"compile": True}, **alone)
        facts["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    else:
        small = {"image_size": 32, "drop_path": 0.0}
        crops = TEACHER["augment"] | {"global_size": 32}
        alone = {"high_resolution": None, "gram": None, "init": str(out / "b" / "model")}
        run("started", "d", **alone, vit=FIRST["vit"] | small, augment=crops)
        run("without gram", "g", high_resolution=None, gram=None)
        run("another network", "f", **alone, vit=FIRST["vit"] | {"depth": 3, "patch_size": 4})
        run("shared heads", "f", **alone, heads=TEACHER["heads"])
        run("no such model", "f", high_resolution=None, gram=None, init=str(out / "nowhere"))
        run(
            "another phase", "b", high_resolution=LARGER | {"iterations": 2}, run=TEACHER["run"] | {"keep_state": False}
        )
        facts["state left"] = (out / "b" / "scratch" / "model").exists()
    (out / f"facts-{world.rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    deepspeed_for(torch.device("cpu"))  # before the ranks are forked
    import torch._dynamo  # every optimizer imports it

    data = Path(sys.argv[1])
    launch(lambda: main(data, data / "one", None), [1], data / "one")
    launch(lambda: main(data, data / "two", data / "one/a/scratch"), [2], data / "two")
