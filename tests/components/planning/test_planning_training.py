"""What training takes, by the planner: against published runs, counts by hand, and inputs made to break it."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.distill.method import DistillParams
from components.errors import VitrailError
from components.params import load_params
from components.planning import run
from components.planning.training import GpuCluster, plan
from components.planning.training_rates import TrainingRates
from components.training.costs.capability import memory_per_rank
from components.training.costs.flops import flops_per_step
from components.training.costs.memory import hidden_patches, scratch_bytes
from components.training.params import TrainingParams

ROOT = Path(__file__).resolve().parents[3]
PRESETS, STUDENTS = ROOT / "params/pretrain", ROOT / "params/distill"
RATES = load_params(ROOT / "params/rates/training.yaml", TrainingRates)


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def preset(name: str, *overrides: str) -> TrainingParams:
    return load_params(PRESETS / f"{name}.yaml", TrainingParams, overrides)


def told(name: str, gpus: int, kind: str, *overrides: str, **how: float) -> str:
    return plan(PRESETS / f"{name}.yaml", preset(name, *overrides), GpuCluster(gpus, kind, RATES.gpus[kind], **how))


def hours(text: str) -> float:
    line = next(row for row in text.splitlines() if row.startswith("the run"))
    return float(line.split(" GPU-hours")[0].split(", ")[-1].replace(",", ""))


KNOWN = [  # preset, GPUs, kind, GPU-hours: DINOv2's model card and paper (table 14), DINOv3's card
    ("vitl_short", 32, "a100-40gb", 32 * 24),
    ("vitl", 96, "a100-40gb", 96 * 3.3 * 24),
    ("vitg", 256, "a100-40gb", 22_016),
    ("vitl_short", 32, "h100-80gb", 32 * 14),
]


@pytest.mark.parametrize(("name", "gpus", "kind", "published"), KNOWN)
def test_plans_of_published_runs_are_near_what_these_took(name: str, gpus: int, kind: str, published: float) -> None:
    assert hours(told(name, gpus, kind)) == pytest.approx(published, rel=0.15)


def test_distilling_a_large_model_from_the_giant_is_near_what_it_took() -> None:
    student = load_params(STUDENTS / "vitl.yaml", DistillParams)
    text = plan(
        STUDENTS / "vitl.yaml", student, GpuCluster(64, "a100-80gb", RATES.gpus["a100-80gb"]), 0, preset("vitg")
    )
    assert hours(text) == pytest.approx(8_000, rel=0.35)  # its card; the length is the recipe's, not published


def test_distillation_on_all_patches_counts_all_their_logits() -> None:
    student = load_params(STUDENTS / "vitl.yaml", DistillParams)
    rows = 2 * 32 * 16**2
    assert hidden_patches(student) == rows
    masked = student.model_copy(update={"patches": "masked"})
    assert hidden_patches(masked) == pytest.approx(rows * 0.5 * 0.3)
    logits = [memory_per_rank(one, 64, True, gpu=True)["prototypes' logits"] for one in (student, masked)]
    # the student's logits, their fp32 form, a product with the targets and a gradient, and the targets
    assert logits[0] == pytest.approx(rows * 131_072 * (2 + 4 + 4 + 4 + 4), rel=0.05)
    assert logits[0] > 5 * logits[1]


def test_every_distillation_fits_the_gpus_its_preset_names() -> None:
    for path in sorted(STUDENTS.glob("*.yaml")):
        student = load_params(path, DistillParams)
        if student.run.recipe_batch is not None:
            on = GpuCluster(64, "a100-80gb", RATES.gpus["a100-80gb"])
            text = plan(path, student, on, 0, preset("vitg"))
            assert "DOES NOT FIT" not in text
            assert "NOT THE RECIPE'S" not in text


def test_the_teacher_of_a_distillation_is_counted_as_what_it_is() -> None:
    student, giant = load_params(STUDENTS / "vits.yaml", DistillParams), preset("vitg")
    own, taught = flops_per_step(student, 1), flops_per_step(student, 1, giant)
    assert taught["student"] == own["student"]
    alone = flops_per_step(giant.model_copy(update={"run": student.run}), 1)
    assert taught["teacher"] == alone["teacher"] > 20 * own["teacher"]


def test_traffic_is_in_the_time() -> None:
    slow = RATES.gpus["h100-80gb"].model_copy(update={"network": 1.0})
    text = plan(PRESETS / "vitg.yaml", preset("vitg"), GpuCluster(256, "h100-80gb", slow))
    sent = float(text.split("sends and receives about ")[1].split(" GB")[0])
    assert hours(text) == pytest.approx(625_000 * sent * 256 / 3600, rel=0.01)  # GB at 1 GB/s
    assert "for its traffic, which is more than its operations take" in text
    within = told("vitg", 8, "h100-80gb")
    assert "s at 450 GB/s" in within  # one machine


def test_the_split_that_is_advised_has_the_fewest_micro_batches_that_fit() -> None:
    text = told("vitg", 96, "h100-80gb")
    assert "global batch: 1,152 images (96 GPUs x run.batch 12 x engine.accumulation 1)" in text
    assert "NOT THE RECIPE'S 3,072" in text
    assert "256 GPUs or here run.batch=32 engine.accumulation=1" in text
    assert "here run.batch=16 engine.accumulation=2" in told("vitg", 96, "a100-40gb")  # 32 do not fit
    assert "NOT THE RECIPE'S" not in told("vitg", 96, "h100-80gb", "run.batch=32")
    assert "which its rates and length are for: 256 GPUs\n" in told("vitg", 100, "h100-80gb")


def test_scratch_is_planned_and_a_large_run_keeps_no_terabyte() -> None:
    giant = preset("vitg")
    assert scratch_bytes(giant) == pytest.approx(16 * 1.235e9, rel=0.01)
    line = next(row for row in told("vitg", 256, "a100-40gb").splitlines() if row.startswith("scratch"))
    assert "12 at most (3 newest, 8 for good, one being written)" in line
    assert float(line.rpartition(": ")[2].split(" GB")[0]) < 300
    odd = told("vitg", 256, "a100-40gb", "run.keep_every=12500")
    assert "run.keep_every 12,500 is no multiple of run.checkpoint_every 3,750: one in 37,500 steps" in odd


@pytest.mark.parametrize("path", [*PRESETS.glob("*.yaml"), *STUDENTS.glob("*.yaml")], ids=lambda path: path.stem)
def test_what_presets_keep_for_good_is_at_steps_that_are_saved(path: Path) -> None:
    kind = DistillParams if path.parent == STUDENTS else TrainingParams
    run = load_params(path, kind).run
    assert run.keep_every % run.checkpoint_every == 0
    assert run.keep_every == 0 or run.iterations // run.keep_every <= 10


def test_plan_of_fp32_is_another_and_gram_counts_from_its_start() -> None:
    half, full = (told("vitl", 96, "h100-80gb", f"engine.precision={name}") for name in ("fp16", "fp32"))
    assert "96 x h100-80gb, fp32 (" in full
    assert hours(full) == pytest.approx(2 * hours(half), abs=1)
    shards = memory_per_rank(preset("vitl"), 96, sixteen_bit=False, gpu=True)["student"]
    assert f"  student: {shards / 1e9:.3f} GB" in full
    assert f"  student: {shards / 2e9:.3f} GB" in half
    gram = told("vitl_gram", 96, "h100-80gb")
    assert "a step of the first 525,000: " in gram
    assert "a step of the last 100,000, with the gram teacher: " in gram
    assert hours(half) < hours(gram) < 1.2 * hours(half)


COMMAND = ["pretrain", "--params", "params/pretrain/vitg.yaml", "--gpus", "256"]


def test_a_rate_and_a_price_make_time_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*COMMAND, "--gpu", "a100-40gb", "--rate", "12", "--price", "2"]) == 0
    text = capsys.readouterr().out
    # 12 images a GPU at 12 a second: a second a step
    assert "about 1.00 s at 12 images/s a GPU" in text
    assert f"{625_000 * 256 / 3600:,.0f} GPU-hours, {2 * 625_000 * 256 / 3600:,.0f} at 2 a GPU-hour" in text


def test_a_gpu_is_given_by_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*COMMAND, "--memory", "192", "--tflops", "1300", "--bandwidth", "50"]) == 0
    text = capsys.readouterr().out
    assert "on 256 x GPU of 192 GB, 1300 TFLOP/s, 50 GB/s, fp16" in text
    assert " GB of 192 GB\n" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--rate", "nan"), "--rate nan: must be a number more than 0"),
        (("--rate", "-1"), "--rate -1: must be a number more than 0"),
        (("--price", "nan"), "--price nan: must be"),
        (("--price", "inf"), "--price inf: must be"),
        (("--utilisation", "7"), "--utilisation 7: must be a number more than 0 and at most 1"),
        (("--utilisation", "nan"), "--utilisation nan: must be"),
        (("--memory", "nan", "--tflops", "1", "--bandwidth", "1"), "--memory nan: must be"),
        (("--memory", "80"), "a GPU without a name needs --tflops, --bandwidth, too"),
        (("--gpus", "0"), "--gpus 0: choose 1 or more"),
        (("--gpu", "h100"), "did you mean 'h100-80gb'"),
    ],
)
def test_arguments_without_sense_are_one_line(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(VitrailError) as caught:
        run.main([*COMMAND, *words])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
