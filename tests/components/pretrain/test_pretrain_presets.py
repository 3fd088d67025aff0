from __future__ import annotations

from pathlib import Path

import pytest
import torch

from components.errors import VitrailError
from components.learning.capability import (
    Machine,
    count_head,
    count_parameters,
    fitting,
    memory_per_rank,
    misfit,
    require,
)
from components.learning.objective import build_network
from components.learning.schedules import Schedules
from components.learning.training import TrainingParams
from components.params import load_params
from components.pretrain import run
from components.pretrain.check import plan

PRESETS = Path(__file__).resolve().parents[3] / "params" / "pretrain"
LAPTOP = Machine(gpus=0, gpu_bytes=0, gpu_name="", cores=2, memory=23 * 10**9)
NODE = Machine(gpus=8, gpu_bytes=80 * 10**9, gpu_name="H100", cores=128, memory=10**12)


def preset(name: str, *overrides: str) -> TrainingParams:
    return load_params(PRESETS / f"{name}.yaml", TrainingParams, overrides)


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_loads_and_its_schedules_are_whole(path: Path) -> None:
    params = load_params(path, TrainingParams)
    total = params.run.iterations
    schedules = Schedules(params.schedule, total, 1024)
    first, last = schedules.at(0), schedules.at(total - 1)
    assert first.learning_rate == 0 or total < 10
    assert last.learning_rate < 1e-4
    assert last.momentum > first.momentum
    assert last.teacher_temperature == pytest.approx(params.schedule.teacher_temperature.peak)
    if not path.stem.startswith("vitt"):  # too short for the paper's
        assert last.teacher_temperature == pytest.approx(0.07)


def test_values_of_the_recipe() -> None:
    large, giant = preset("vitl"), preset("vitg")
    assert Schedules(large.schedule, 625_000, 3072).learning_rate.max() == pytest.approx(3.46e-4, rel=2e-3)
    assert count_parameters(giant)["backbone"] == pytest.approx(1.135e9, rel=2e-3)
    assert (giant.run.batch * 256, large.run.batch * 96) == (3072, 3072)
    small = preset("vits")
    assert Schedules(small.schedule, 125_000, 2048).learning_rate.max() == pytest.approx(5.66e-3, rel=2e-3)
    assert small.heads.ibot is None
    assert small.objective.centering == "softmax"


@pytest.mark.parametrize(
    "change", [[], ["vit.ffn=swiglu"], ["vit.registers=4", "vit.layerscale_init=null", "heads.ibot=null"]]
)
def test_counts_are_exact(change: list[str]) -> None:
    params = preset("vitt", *change)
    network = build_network(params.vit, params.heads, 0)
    counted = {name: sum(p.numel() for p in child.parameters()) for name, child in network.named_children()}
    assert count_parameters(params) == counted
    assert count_head(128, params.heads.dino) == counted["dino_head"]


def test_states_are_cut_evenly_and_sixteen_bit_costs_two_more_copies() -> None:
    params = preset("vitl")
    count = sum(count_parameters(params).values())
    eight = memory_per_rank(params, 8, sixteen_bit=True)
    # student 2 + average 2 + masters 4 + average 4, moments 8, gradients 4: 24 bytes a parameter
    states = eight["weights, masters, average"] + eight["AdamW moments"] + eight["gradients"]
    assert states == pytest.approx(24 * count / 8)


def test_what_fits_where() -> None:
    presets = {name: preset(name) for name in ("vitt", "vits", "vitb", "vitl", "vitg")}
    assert fitting(presets, LAPTOP) == ["vitt"]
    assert fitting(presets, NODE, 8) == ["vitt", "vits", "vitb", "vitl", "vitg"]
    assert "needs CUDA GPUs" in misfit(presets["vitg"], LAPTOP)
    tiny_gpu = Machine(gpus=1, gpu_bytes=6 * 10**9, gpu_name="T", cores=2, memory=10**10)
    assert "(this run has 1)" in misfit(presets["vitl"], tiny_gpu)


def test_misfit_names_need_find_and_a_preset_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.learning.capability.this_machine", lambda: LAPTOP)
    with pytest.raises(VitrailError) as fault:
        require(PRESETS / "vitg.yaml", preset("vitg"))
    line = str(fault.value)
    assert "needs CUDA GPUs: one of" in line
    assert "found no CUDA device, 2 cores, 23 GB of memory; presets that fit here: vitt" in line
    assert "\n" not in line


def test_check_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["check", "--params", str(PRESETS / "vitt.yaml")]) == 0
    millions = sum(count_parameters(preset("vitt")).values()) / 1e6
    assert f"fits: {millions:.1f} M parameters" in capsys.readouterr().out
    if not torch.cuda.is_available():
        missing = ["--curated", "x", "--manifest", "x", "--out", "x", "--report", "x"]
        with pytest.raises(VitrailError, match="presets that fit here: vitt"):  # before it looks for data
            run.main(["run", "--params", str(PRESETS / "vitg.yaml"), *missing])


def test_plan_of_the_giant_is_near_what_it_took() -> None:
    text = plan(PRESETS / "vitg.yaml", preset("vitg"), 256, "a100-40gb", 0.35)
    assert "global batch: 3072 images" in text
    assert "DOES NOT FIT" not in text
    line = next(row for row in text.splitlines() if row.startswith("the run"))
    hours = float(line.split(" GPU-hours")[0].split(", ")[-1].replace(",", ""))
    assert 15_000 < hours < 35_000  # 22,016 A100-40GB hours were reported (arXiv 2304.07193, table 14)
    with pytest.raises(VitrailError, match="did you mean 'h100-80gb'"):
        plan(PRESETS / "vitg.yaml", preset("vitg"), 8, "h100", 0.35)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("augment.local_size=30", "augment.local_size 30 is no multiple of vit.patch_size 8"),
        ("run.iteration=3", "unknown key 'run.iteration'; did you mean 'iterations'"),
        ("heads.dino.prototype=3", "did you mean 'prototypes'"),
        ("engine.precision=fp8", "engine.precision"),
        ("vit.in_channels=1", "vit.in_channels must be 3"),
    ],
)
def test_faults_in_params_are_named(change: str, message: str) -> None:
    with pytest.raises(VitrailError) as fault:
        preset("vitt", change)
    assert message in str(fault.value)


def test_fingerprint_changes_with_what_decides_the_numbers_only() -> None:
    base = preset("vitt").fingerprint("d")
    assert preset("vitt", "run.log_every=7", "loader.workers=1", "engine.device=cpu").fingerprint("d") == base
    assert preset("vitt", "schedule.momentum.peak=0.97").fingerprint("d") != base
    assert preset("vitt").fingerprint("e") != base
