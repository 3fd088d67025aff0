"""The GPU measurement's logic on a CPU: its FLOP count, its step, and the form of its table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from components.learning.objective import build_network
from components.training.params import TrainingParams
from perf import gpu

CPU = torch.device("cpu")
TINY = (
    "vit.embed_dim=24", "vit.depth=2", "vit.heads=2", "heads.dino.prototypes=40", "heads.dino.hidden=16",
    "heads.dino.bottleneck=8", "augment.global_size=32", "augment.local_size=16", "vit.image_size=32",
    "run.batch=3", "augment.locals=2", "masks.min_patches=1",
)  # fmt: skip


def tiny(**vit: Any) -> TrainingParams:
    return TrainingParams.model_validate(
        {
            "vit": {"image_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "heads": 2} | vit,
            "heads": {
                "dino": {"prototypes": 40, "hidden": 16, "bottleneck": 8},
                "ibot": {"prototypes": 56, "hidden": 16, "bottleneck": 8},
            },
            "augment": {"global_size": 32, "local_size": 16, "locals": 2},
            "masks": {"min_patches": 1},
            "objective": {"koleo_weight": 0.0},  # its similarities are products, but none of the network's
            "schedule": {"learning_rate": {"peak": 1e-3, "end": 1e-6, "warmup": 0.1}, "momentum": {"peak": 0.9}},
            "run": {"iterations": 10, "batch": 4},
        }
    )


@pytest.mark.parametrize(
    "vit", [{}, {"ffn": "swiglu", "registers": 3}, {"drop_path": 0.4}], ids=["mlp", "swiglu", "drop path"]
)
@pytest.mark.parametrize("way", ["packed, eager", "separate, eager"])
def test_flops_are_those_that_torch_counts(vit: dict[str, Any], way: gpu.Way) -> None:
    params = tiny(**vit)
    step = gpu.Step(params, build_network(params.vit, params.heads, 0), CPU, "fp32", way)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() == gpu.step_flops(params, len(step.hidden.positions))


def test_packed_and_separate_steps_train_the_same_network() -> None:
    params = tiny()
    network = build_network(params.vit, params.heads, 0)
    steps = [gpu.Step(params, network, CPU, "fp32", way) for way in ("packed, eager", "separate, eager")]
    start = [p.detach().clone() for p in steps[0].masters.parameters()]
    for _ in range(2):
        one, other = (float(step()) for step in steps)
        assert one == pytest.approx(other, rel=1e-5)
    ours = list(steps[0].masters.parameters())
    # the first step's AdamW moves a weight by the sign of its gradient: where that is rounding, the two differ
    apart = torch.cat([(a - b).flatten() for a, b in zip(ours, steps[1].masters.parameters(), strict=True)])
    moved = torch.cat([(a - b).flatten() for a, b in zip(ours, start, strict=True)])
    assert apart.norm() < 0.05 * moved.norm()
    for step in steps:
        for master, weight in zip(step.masters.parameters(), step.student.parameters(), strict=True):
            assert torch.equal(master, weight)
        taught = list(step.teacher.parameters())
        assert all(torch.equal(a, b) for a, b in zip(step.average, taught, strict=True))
        assert not torch.equal(taught[0], start[0])
        assert (taught[0] - start[0]).abs().max() < (ours[0] - start[0]).abs().max()  # a tenth of the way, then more


def test_the_table_has_every_way_of_every_precision() -> None:
    found: Any = gpu.main("cpu", gpu.Table(["vits"], ["fp32", "bf16"], gpu.WAYS[:2], TINY, rounds=1, side=64))
    assert found.keys() == {"dense_matmul_tflops", "vits"}
    assert found["vits"]["batch"] == 3
    for precision in ("fp32", "bf16"):
        rows = found["vits"][precision]
        for way in gpu.WAYS[:2]:
            assert rows[way]["step_seconds"] > 0
            assert rows[way].keys() >= {"images_per_second", "model_tflops", "share_of_matmul_rate"}
            assert rows[way]["loss"] > 0
        ratio = rows["separate, eager over packed, eager: step_seconds"]
        expected = rows["separate, eager"]["step_seconds"] / rows["packed, eager"]["step_seconds"]
        assert ratio == pytest.approx(expected, abs=1e-3)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == {"left out": "no CUDA device"}


def test_a_case_that_does_not_fit_is_left_out_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    step: Callable[..., None] = gpu.Step.__init__

    def init(self: gpu.Step, *args: Any) -> None:
        if args[-1] == "separate, eager":
            raise torch.OutOfMemoryError
        step(self, *args)

    monkeypatch.setattr(gpu.Step, "__init__", init)
    found: Any = gpu.main("cpu", gpu.Table(["vits"], ["fp32"], gpu.WAYS[:2], TINY, rounds=1, side=64))
    rows = found["vits"]["fp32"]
    assert rows["separate, eager"] == {"left out": "out of memory at a batch of 3"}
    assert rows["packed, eager"]["step_seconds"] > 0
