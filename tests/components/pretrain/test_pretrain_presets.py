from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.errors import VitrailError
from components.learning.objective import build_network
from components.learning.schedules import Schedules
from components.params import load_params
from components.pretrain import run
from components.pretrain.check import check
from components.training.costs.capability import (
    Machine,
    count_head,
    count_parameters,
    fitting,
    memory_per_rank,
    misfit,
    require,
    states_per_rank,
)
from components.training.costs.flops import bytes_moved, flops_per_step
from components.training.launch import processes, start_ranks
from components.training.params import TrainingParams

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
    assert last.learning_rate < schedules.learning_rate.max() / 9
    assert last.momentum > first.momentum
    assert last.teacher_temperature == pytest.approx(params.schedule.teacher_temperature.peak)
    if not path.stem.startswith("vitt") and not path.stem.endswith("_cifar"):  # too short for the paper's
        assert last.teacher_temperature == pytest.approx(0.07)


# Of DINOv2's released configurations (vitl16_short; vitl14 and vitg14), arXiv 2304.07193 tables 16 and 17.
SHORT: dict[str, Any] = {
    "vit.patch_size": 16, "vit.ffn": "mlp", "vit.drop_path": 0.3,
    "heads.dino.prototypes": 65_536, "heads.dino.bottleneck": 256, "heads.ibot": None,
    "augment.local_size": 96, "objective.centering": "softmax", "objective.center_momentum": 0.9,
    "schedule.learning_rate.peak": 4e-3, "schedule.learning_rate.warmup": 10 * 1250,
    "schedule.weight_decay.peak": 0.04, "schedule.weight_decay.end": 0.4, "schedule.momentum.peak": 0.992,
    "groups.layer_decay": 0.9, "run.iterations": 100 * 1250, "run.batch": 64, "run.recipe_batch": 2048,
}  # fmt: skip
LONG: dict[str, Any] = {
    "vit.patch_size": 14, "vit.ffn": "swiglu", "vit.drop_path": 0.4,
    "heads.dino.prototypes": 131_072, "heads.dino.bottleneck": 384,
    "heads.ibot.prototypes": 131_072, "heads.ibot.bottleneck": 256, "heads.ibot.hidden": 2048,
    "augment.local_size": 98, "objective.centering": "sinkhorn", "objective.sinkhorn_iterations": 3,
    "schedule.learning_rate.peak": 2e-4, "schedule.learning_rate.warmup": 80 * 1250,
    "schedule.weight_decay.peak": 0.04, "schedule.weight_decay.end": 0.2, "schedule.momentum.peak": 0.994,
    "groups.layer_decay": 1.0, "run.iterations": 500 * 1250, "run.recipe_batch": 3072,
}  # fmt: skip
BOTH: dict[str, Any] = {
    "vit.image_size": 224, "vit.layerscale_init": 1e-5, "vit.registers": 0, "vit.interpolation": "offset",
    "vit.mlp_ratio": 4.0, "vit.qkv_bias": True, "vit.in_channels": 3,
    "heads.dino.hidden": 2048, "heads.dino.layers": 3, "heads.dino.init_std": 0.02,
    "augment.global_size": 224, "augment.locals": 8, "augment.global_scale": (0.32, 1.0),
    "augment.local_scale": (0.05, 0.32), "augment.hflip": 0.5, "augment.grayscale": 0.2,
    "augment.blur": (0.0, 0.9, 0.5), "augment.solarize": (0.0, 0.2, 0.0), "augment.solarize_threshold": 128,
    "augment.ratio": (3 / 4, 4 / 3), "augment.resize": "antialiased", "augment.vflip": 0.0, "augment.rot90": 0.0,
    "augment.blur_kernel": 9, "augment.blur_sigma": (0.1, 2.0), "augment.gray": False,
    "augment.mean": (0.485, 0.456, 0.406), "augment.std": (0.229, 0.224, 0.225),
    "augment.jitter": {"probability": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
    "masks.probability": 0.5, "masks.ratio_min": 0.1, "masks.ratio_max": 0.5, "masks.min_patches": 4,
    "masks.aspect": 0.3, "masks.tries": 10, "masks.cyclic_shift": False,
    "objective.dino_weight": 1.0, "objective.ibot_weight": 1.0, "objective.koleo_weight": 0.1,
    "objective.koleo_over": "rank", "objective.student_temperature": 0.1,
    "schedule.learning_rate.end": 1e-6, "schedule.learning_rate_rule": "sqrt", "schedule.reference_batch": 1024,
    "schedule.momentum.end": 1.0, "schedule.freeze_last_layer": 1250,
    "schedule.teacher_temperature.start": 0.04, "schedule.teacher_temperature.peak": 0.07,
    "schedule.teacher_temperature.warmup": 30 * 1250, "schedule.teacher_temperature.shape": "constant",
    "groups.patch_embed_multiplier": 0.2, "engine.precision": "fp16", "engine.clip": 3.0,
    "engine.reduce_dtype": "heads_fp32", "engine.accumulation": 1, "init": None, "gram": None, "high_resolution": None,
}  # fmt: skip


def shape(dim: int, depth: int, heads: int) -> dict[str, Any]:
    return {"vit.embed_dim": dim, "vit.depth": depth, "vit.heads": heads}


RECIPES = {
    "vits": BOTH | SHORT | shape(384, 12, 6),
    "vitb": BOTH | SHORT | shape(768, 12, 12),
    "vitl_short": BOTH | SHORT | shape(1024, 24, 16),
    "vitl": BOTH | LONG | shape(1024, 24, 16) | {"run.batch": 32},
    "vitg": BOTH | LONG | shape(1536, 40, 24) | {"run.batch": 12},
}


def value(params: TrainingParams, key: str) -> Any:
    for part in key.split("."):
        params = getattr(params, part)
    return params.model_dump() if hasattr(params, "model_dump") else params


@pytest.mark.parametrize("name", RECIPES)
def test_values_of_the_recipe(name: str) -> None:
    params = preset(name)
    wrong = {key: value(params, key) for key, wanted in RECIPES[name].items() if value(params, key) != wanted}
    assert wrong == {}


def test_what_follows_from_the_values() -> None:
    large, giant, small = preset("vitl"), preset("vitg"), preset("vits")
    assert Schedules(large.schedule, 625_000, 3072).learning_rate.max() == pytest.approx(3.46e-4, rel=2e-3)
    assert Schedules(small.schedule, 125_000, 2048).learning_rate.max() == pytest.approx(5.66e-3, rel=2e-3)
    assert count_parameters(giant)["backbone"] == pytest.approx(1.135e9, rel=2e-3)
    assert (giant.run.batch * 256, large.run.batch * 96, small.run.batch * 32) == (3072, 3072, 2048)


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in content.items():
        found |= flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key: inner}
    return found


SMALL_BATCH = {
    "schedule.learning_rate.warmup": 0.1, "schedule.momentum.peak": 0.999, "schedule.freeze_last_layer": 0.01,
    "schedule.teacher_temperature.warmup": 0.3, "run.iterations": 500_000, "run.keep_every": 50_000,
    "run.recipe_batch": 256,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "base", "changes"),
    [
        ("vitl_registers", "vitl", {"vit.registers": 4, "vit.interpolation": "size"}),
        ("vitl_gram", "vitl", {"gram": None}),
        ("vitl_518", "vitl", {"high_resolution": None}),
        ("vitl_short_byol", "vitl_short", {"augment.blur": (1.0, 0.1, 0.5)}),
        (
            "vits_1gpu",
            "vits",
            SMALL_BATCH | {"engine.accumulation": 2, "run.batch": 128, "objective.center_momentum": 0.9934},
        ),
        ("vitb_1gpu", "vitb", SMALL_BATCH | {"engine.accumulation": 4, "objective.center_momentum": 0.9967}),
    ],
)
def test_a_variant_is_its_base_but_for_what_it_is_for(name: str, base: str, changes: dict[str, Any]) -> None:
    own, its = preset(name), flat(preset(base).model_dump())
    found = flat(own.model_copy(update={"gram": None, "high_resolution": None}).model_dump())
    kept = {key for key, wanted in changes.items() if wanted is None}
    assert {key: v for key, v in found.items() if v != its[key]} == {k: v for k, v in changes.items() if k not in kept}
    assert kept == {key for key in ("gram", "high_resolution") if getattr(own, key) is not None}


@pytest.mark.parametrize("name", ["vits_1gpu", "vitb_1gpu"])
def test_a_small_batch_is_scaled_by_rule(name: str) -> None:
    params = preset(name)
    assert params.run.batch * params.engine.accumulation == 256
    assert Schedules(params.schedule, 1000, 256).learning_rate.max() == pytest.approx(2e-3)
    assert params.schedule.momentum.peak == pytest.approx(0.992 ** (256 / 2048), abs=5e-6)
    # moved by every micro-batch, not once a step
    assert params.objective.center_momentum == pytest.approx(0.9 ** (params.run.batch / 2048), abs=5e-5)


def test_the_phase_at_518_pixels_keeps_the_global_batch() -> None:
    first, second = preset("vitl_518").phases()
    assert (second.first, second.last) == (625_000, 635_000)
    assert second.params.grid() == (37, 37)  # 1 + 37 * 37 positions, as the released models have
    assert second.params.vit.image_size == second.params.augment.global_size == 518
    batches = [phase.params.run.batch * phase.params.engine.accumulation * 96 for phase in (first, second)]
    assert batches == [3072, 3072]
    schedules = Schedules(second.params.schedule, 10_000, 3072)
    assert schedules.learning_rate.max() == pytest.approx(5e-5 * 3**0.5, rel=1e-3)
    assert schedules.learning_rate.argmax() + 1 == 1600  # 80 of 500 epochs
    assert (schedules.last_layer == 0).sum() == 20  # an epoch of 500


def test_gram_of_the_preset() -> None:
    gram = preset("vitl_gram").gram
    assert gram is not None
    assert (gram.weight, gram.refresh_every, gram.refreshes, gram.size) == (2.0, 10_000, 3, 448)
    assert gram.teacher_at <= 200_000


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
    # student 2 + teacher 2 + masters 4 + average 4, moments 8, gradients 4: 24 bytes a parameter
    names = ("student", "teacher", "masters", "average", "AdamW moments", "gradients")
    states = sum(eight[name] for name in names)
    assert states == pytest.approx(24 * count / 8, rel=1e-4)
    assert states >= 24 * count / 8  # parameters that 8 does not divide are padded
    assert sum(states_per_rank(params, 8, sixteen_bit=True).values()) == states


def test_traffic_is_that_of_the_gathers_and_of_the_reductions() -> None:
    params = preset("vitb", "objective.centering=softmax")
    counts = count_parameters(params)
    heads = sum(counts.values()) - counts["backbone"]
    # two gathers in fp16, the backbone's gradients in fp16 and the heads' in fp32; a centre of K numbers
    prototypes = params.heads.dino.prototypes + (params.heads.ibot or params.heads.dino).prototypes
    expected = 2 * 2 * sum(counts.values()) + 2 * counts["backbone"] + 4 * heads + 8 * prototypes
    assert sum(bytes_moved(params, 8).values()) == pytest.approx(expected * 7 / 8)
    assert sum(bytes_moved(params, 1).values()) == 0
    assert sum(bytes_moved(params, 8, sixteen_bit=False).values()) > 1.9 * expected * 7 / 8 - 4 * heads
    giant, total = preset("vitg"), sum(count_parameters(preset("vitg")).values())
    again = bytes_moved(giant, 256)["student's weights again in backward"]
    assert again == pytest.approx(2 * (total - 10**9) * 255 / 256)
    gram = bytes_moved(preset("vitl_gram"), 96)["gram teacher's weights"]
    assert gram == pytest.approx(2 * count_parameters(preset("vitl"))["backbone"] * 95 / 96)


# ViT-S/16 by hand, in multiplications. A block's products: 3 D^2 + D^2 + 2 x 4 D^2 = 12 x 384^2 = 1,769,472 a token,
# and 2 D T^2 of attention; a patch of 16 x 16 x 3 becomes a token by 768 x 384 = 294,912. Crops have 197 and 37 tokens.
GLOBAL_BLOCKS = 12 * (197 * 1_769_472 + 2 * 384 * 197**2)
LOCAL_BLOCKS = 12 * (37 * 1_769_472 + 2 * 384 * 37**2)
# the head: 384 -> 2048 -> 2048 -> 256 -> 65,536
HEAD = 786_432 + 4_194_304 + 524_288 + 16_777_216
# Of 64 images: 128 global and 512 local crops, 89 and 358 of which a residual of rate 0.3 is computed on;
# half of the global crops have 0.3 of 196 patches hidden in the mean
HIDDEN = 64 * 0.3 * 196
VITS_MULTIPLICATIONS = {
    "student": 3 * (89 * GLOBAL_BLOCKS + 358 * LOCAL_BLOCKS + (128 * 196 + 512 * 36) * 294_912),
    "teacher": 128 * (GLOBAL_BLOCKS + 196 * 294_912),
    "DINO head": (3 * 640 + 128) * HEAD,
    "iBOT head": 4 * HIDDEN * HEAD,
}


def test_operations_of_vits_are_those_counted_by_hand() -> None:
    found = flops_per_step(preset("vits"), 32)
    assert found == pytest.approx({name: 2 * 32 * count for name, count in VITS_MULTIPLICATIONS.items()})
    assert found["iBOT head"] / sum(found.values()) == pytest.approx(0.109, abs=0.001)
    assert pytest.approx(9.2e9, rel=1e-3) == 2 * (GLOBAL_BLOCKS + 196 * 294_912)  # 4.6 G multiplications, as published


def test_what_else_is_computed_counts() -> None:
    plain = flops_per_step(preset("vits"), 1)
    again = flops_per_step(preset("vits", "run.activation_checkpointing=true", "engine.accumulation=2"), 1)
    assert again.pop("blocks again in backward") == 2 * 2 * (89 * GLOBAL_BLOCKS + 358 * LOCAL_BLOCKS)
    assert again == pytest.approx({name: 2 * count for name, count in plain.items()})
    large, gram = preset("vitl"), preset("vitl_gram")
    before, after = flops_per_step(large, 96), flops_per_step(gram, 96)
    own = after.pop("gram teacher")
    assert after == before
    # crops of twice the side: four times the patches, and attention grows by their square
    assert 4 < own / before["teacher"] < 5


def test_memory_of_a_gram_teacher_and_of_a_gather() -> None:
    plain, gram = (memory_per_rank(preset(name), 8, sixteen_bit=True) for name in ("vitl", "vitl_gram"))
    assert plain["gram teacher's pass"] == 0
    assert gram["gram teacher's pass"] > 2 * 32 * 3 * 448**2  # its crops' bytes alone
    assert gram["gathered layers"] > plain["gathered layers"] == 2 * sum(count_parameters(preset("vitl")).values())
    assert memory_per_rank(preset("vitl"), 1, sixteen_bit=True)["gathered layers"] == 0


def test_what_fits_where() -> None:
    presets = {name: preset(name) for name in ("vitt", "vits", "vitb", "vitl", "vitg")}
    assert fitting(presets, LAPTOP) == ["vitt"]
    assert fitting(presets, NODE, 8) == ["vitt", "vits", "vitb", "vitl", "vitg"]
    assert "needs CUDA GPUs" in misfit(presets["vitg"], LAPTOP)
    tiny_gpu = Machine(gpus=1, gpu_bytes=6 * 10**9, gpu_name="T", cores=2, memory=10**10)
    assert "(this run has 1 process)" in misfit(presets["vitl"], tiny_gpu)


def test_one_process_on_eight_gpus_is_not_taken_for_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Machine(gpus=8, gpu_bytes=40 * 10**9, gpu_name="A100", cores=128, memory=10**12)
    giant, tiny = preset("vitg"), preset("vitt")
    assert misfit(giant, node, 8) == ""
    line = misfit(giant, node, 1)
    assert line.startswith("needs CUDA GPUs: one of ")
    assert line.endswith("a process on each of the 8 GPUs here has room: run.processes: auto, or torchrun")
    assert [processes(params, machine) for params in (giant, tiny) for machine in (node, LAPTOP)] == [8, 1, 8, 1]
    assert processes(preset("vitg", "run.processes=4"), node) == 4
    monkeypatch.setattr("components.pretrain.check.this_machine", lambda: node)
    monkeypatch.setattr("components.training.costs.capability.this_machine", lambda: node)
    assert "GB in each of the 8 processes that run starts here; found 8 x A100" in check(PRESETS / "vitg.yaml", giant)
    with pytest.raises(VitrailError, match=r"this run has 1 process\); a process on each of the 8 GPUs"):
        check(PRESETS / "vitg.yaml", preset("vitg", "run.processes=1"))


def test_run_becomes_torchrun_where_it_was_started_alone_on_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    began: list[list[str]] = []
    monkeypatch.setattr("components.training.launch.os.execv", lambda _, command: began.append(command))
    argv, tiny = ["run", "--params", "x.yaml"], preset("vitt")
    for machine in (NODE, LAPTOP):
        monkeypatch.setattr("components.training.launch.this_machine", lambda found=machine: found)
        start_ranks("components.distill", argv, tiny)
    [command] = began  # the laptop has no GPU: one process, which is there already
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=8"]
    assert command[-5:] == ["-m", "components.distill", *argv]
    monkeypatch.setenv("WORLD_SIZE", "1")  # a rank, if only one
    monkeypatch.setattr("components.training.launch.this_machine", lambda: NODE)
    start_ranks("components.distill", argv, tiny)
    assert len(began) == 1


def test_processes_on_one_machine_share_its_memory() -> None:
    small = Machine(gpus=0, gpu_bytes=0, gpu_name="", cores=2, memory=25 * 10**8)
    tiny = preset("vitt", "engine.device=cpu")
    need = sum(memory_per_rank(tiny, 2, sixteen_bit=False).values())
    assert need < 0.9 * small.memory < 2 * need
    assert misfit(tiny, small, 2, here=1) == ""
    assert misfit(tiny, small, 2) == f"needs about {need / 1e9:.1f} GB of memory in each of 2 processes"


def test_fp16_on_a_cpu_is_refused_before_anything_is_read() -> None:
    for change in (["engine.precision=fp16"], ["engine.precision=fp16", "engine.device=cpu"]):
        line = misfit(preset("vitt", *change), LAPTOP)
        assert line == "engine.precision is fp16, which needs a CUDA GPU; on a CPU use fp32, bf16 or auto"
    assert misfit(preset("vitt", "engine.precision=fp16"), NODE) == ""
    missing = ["--curated", "x", "--manifest", "x", "--out", "x", "--report", "x", "--set", "engine.precision=fp16"]
    command = ["--params", str(PRESETS / "vitt.yaml"), *missing, "--set", "engine.device=cpu"]
    with pytest.raises(VitrailError, match=r"vitt\.yaml: engine\.precision is fp16, which needs a CUDA GPU"):
        run.main(["run", *command])


def test_misfit_names_need_find_and_a_preset_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.training.costs.capability.this_machine", lambda: LAPTOP)
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
