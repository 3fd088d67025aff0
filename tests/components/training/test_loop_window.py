"""The window between two points of the curves: what it averages, its rate, and that a checkpoint does not break it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from components.learning.objective import Losses
from components.learning.schedules import StepValues
from components.params import load_params
from components.training import loop
from components.training.loop import _Window
from components.training.params import TrainingParams
from components.training.ranks.distributed import World
from components.training.sharded.engine import StepReport

PARAMS = load_params(Path(__file__).resolve().parents[3] / "params/pretrain/vitt.yaml", TrainingParams)
ALONE = World(0, 1, 0, torch.device("cpu"))
VALUES = StepValues(*[0.5] * len(StepValues._fields))
REPORT = StepReport({"backbone": 1.5}, False, 1.0)


def losses(generator: torch.Generator) -> list[Losses]:
    """Of a step of two micro-batches."""
    draw = torch.rand(2, 3, generator=generator)
    return [Losses(row.sum(), dict(zip(("dino_global", "dino_local", "ibot"), row, strict=True))) for row in draw]


def window(step: int = 0) -> _Window:
    made = _Window(ALONE, PARAMS)
    made.begin(step)
    return made


def test_a_point_after_a_checkpoint_in_its_midst_is_that_of_an_unbroken_run() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [losses(generator) for _ in range(5)]
    unbroken, before, after = window(), window(), window(2)
    for step in steps:
        unbroken.add(step, {})
    for step in steps[:2]:
        before.add(step, {})
    after.load(json.loads(json.dumps(before.state())))
    for step in steps[2:]:
        after.add(step, {})
    wanted, found = (part.close(5, VALUES, REPORT, 8) for part in (unbroken, after))
    assert wanted.pop("images_per_second") > 0
    assert found.pop("images_per_second") > 0
    assert found == wanted
    assert found["loss"] == pytest.approx(float(torch.stack([f.total for step in steps for f in step]).mean()))


def test_other_ranks_go_on_from_the_mean_of_those_before() -> None:
    halves = {"sums": [{"dino_global": 1.0}, {"dino_global": 3.0}], "micro": 2}
    own = window()
    own.load(halves)
    assert own.close(2, VALUES, REPORT, 8)["dino_global"] == 1.0
    second = _Window(World(1, 2, 1, torch.device("cpu")), PARAMS)
    second.load(halves)
    assert float(second._sums["dino_global"]) == 3.0


def test_the_rate_of_a_resumed_run_counts_its_own_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    resumed = window(1000)
    now = 110.0
    resumed.leave_out(5.0)  # a probe
    assert resumed.close(1010, VALUES, REPORT, 8)["images_per_second"] == pytest.approx(10 * 8 / 5)
    now = 114.0
    assert resumed.close(1020, VALUES, REPORT, 8)["images_per_second"] == pytest.approx(10 * 8 / 4)
