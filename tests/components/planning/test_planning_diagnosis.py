"""Known causes of runs that do not learn are named with their evidence, and a sound run has none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from components.errors import VitrailError
from components.params import load_params
from components.planning import run
from components.planning.diagnosis import RULES, Record, diagnose, told
from components.planning.records import load_record
from components.training.costs.flops import bytes_moved, flops_per_step
from components.training.loop import Curves
from components.training.params import TrainingParams

ROOT = Path(__file__).resolve().parents[3]
# vitt on 498 photographs, as recorded; the figures of a run that learned
SOUND = {
    "loss": 6.97, "cross_entropy": 0.948, "target_entropy": 0.837, "prototype_usage": 0.9997, "feature_rank": 38.0,
    "feature_std": 0.96, "loss_scale": 1.0,
}  # fmt: skip


def record(*changes: str, preset: str = "vitt", rows: int | None = 498, **last: float) -> Record:
    params = load_params(ROOT / f"params/pretrain/{preset}.yaml", TrainingParams, changes)
    step = int(last.pop("step", params.run.iterations))
    skipped = int(last.pop("skipped", 0))
    early: dict[str, float] = SOUND | {"step": max(1, step // 2), "cross_entropy": 0.97}
    points = [early, SOUND | last | {"step": step}]
    return Record(params, Curves(points=points, images=step * 64, seconds=100.0, skipped=skipped), rows)


def causes(one: Record) -> list[str]:
    return [finding.cause for finding in diagnose(one) if finding.fits]


def test_a_sound_run_has_none_of_the_causes() -> None:
    assert causes(record()) == []
    assert "none of the known causes fits" in told(record())
    assert len(diagnose(record())) == len(RULES)


@pytest.mark.parametrize(
    ("one", "cause"),
    [
        (record(step=40, cross_entropy=1.0), "the run is too young"),
        (record("schedule.freeze_last_layer=0.5"), "the last layer is frozen"),
        (record("schedule.freeze_last_layer=500", step=400), "the last layer is frozen"),
        (record(target_entropy=0.99), "the teacher's temperature is too high"),
        (record("heads.dino.prototypes=65536", cross_entropy=1.0), "there are too many prototypes"),
        (record("schedule.momentum={peak: 0.994, end: 1.0}"), "the teacher's momentum ends at 1"),
        (record(feature_rank=1.2), "features collapse"),
        (record(feature_std=0.01), "features collapse"),
        (record(prototype_usage=0.02), "prototypes collapse"),
        (record(rows=20), "images repeat too often"),
        (record(rows=100), "images repeat too often"),
        (record(loss=math.nan), "the learning rate is too high"),
        (record(cross_entropy=1.05), "the learning rate is too high"),
        (
            record("schedule.learning_rate.peak=2e-4", "schedule.learning_rate_rule=sqrt", cross_entropy=0.995),
            "the learning rate is too low",
        ),
        (record(loss_scale=4.0), "fp16's range"),
        (record(loss_scale=65536.0, skipped=30), "fp16's range"),
    ],
)
def test_each_cause_is_named(one: Record, cause: str) -> None:
    found = causes(one)
    assert any(name.startswith(cause) for name in found), found
    (finding,) = (f for f in diagnose(one) if f.cause.startswith(cause))
    assert finding.evidence
    assert finding.change


@pytest.mark.parametrize("preset", ["vits", "vitb", "vitl", "vitg"])
def test_the_papers_recipes_have_no_cause_in_their_parameters(preset: str) -> None:
    params = load_params(ROOT / f"params/pretrain/{preset}.yaml", TrainingParams)
    points: list[dict[str, float]] = [SOUND | {"step": step} for step in (1000, params.run.iterations)]
    images = params.run.iterations * 3072
    assert causes(Record(params, Curves(points=points, images=images), 142_000_000)) == []


def test_a_curve_without_figures_is_no_cause() -> None:
    one = record()
    bare = Record(one.params, Curves(points=[{"step": 600, "loss": 7.0}], images=38_400))
    assert causes(bare) == []
    assert "nothing is known about DINO's loss" in told(bare)


def curves(*points: dict[str, Any]) -> dict[str, Any]:
    return vars(Curves(points=list(points), images=640))


def test_a_model_a_scratch_folder_and_a_checkpoint_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    model, scratch = tmp_path / "pretrain/vitt", tmp_path / "scratch/pretrain/vitt"
    model.mkdir(parents=True)
    (model / "curve.json").write_text(json.dumps(curves(SOUND | {"step": 10})))
    for step in (10, 20):
        folder = scratch / f"step-{step:08d}"
        folder.mkdir(parents=True)
        held = {"shared": {"curves": curves(SOUND | {"step": step, "feature_rank": 1.0})}}
        (folder / "manifest.json").write_text(json.dumps(held))
    assert run.main(["diagnose", str(model)]) == 0
    assert "features collapse: all images get one vector (effective rank 38.0" in capsys.readouterr().out
    assert load_record(scratch, None).step == 20
    assert load_record(scratch / "step-00000010", None).step == 10
    assert causes(load_record(scratch, None))[0].startswith("the last layer") is False


def test_what_holds_no_curves_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(VitrailError, match=r"no curve\.json and no checkpoint"):
        load_record(tmp_path, None)
    model = tmp_path / "pretrain/ours"
    model.mkdir(parents=True)
    (model / "curve.json").write_text(json.dumps(curves()))
    with pytest.raises(VitrailError, match="no point of the curves yet"):
        load_record(model, None)
    (model / "curve.json").write_text(json.dumps(curves(SOUND | {"step": 10})))
    with pytest.raises(VitrailError, match=r"ours.yaml: not there; name the run's preset with --params"):
        load_record(model, None)
    (model / "curve.json").write_text("{")
    with pytest.raises(VitrailError, match="damaged"):
        load_record(model, ROOT / "params/pretrain/vitt.yaml")


def test_a_contrastive_run_is_asked_for_its_own_causes_and_plans_without_a_teacher() -> None:
    sound = record(preset="vitt_cifar_contrastive", rows=20_000, target_entropy=math.nan, prototype_usage=math.nan)
    assert causes(sound) == []
    assert told(sound).startswith("contrastive loss: ")
    assert "rototypes" not in told(sound)
    assert "target" not in told(sound)
    poor = record("heads.dino.batch_norm=false", "run.iterations=14000", preset="vitt_cifar_contrastive",
                  rows=20_000, cross_entropy=1.0, step=14_000)  # fmt: skip
    flat = Curves(points=poor.curves.points[-1:], images=14_000 * 16)
    assert causes(Record(poor.params, flat, 20_000)) == [
        "too few other images in a batch",
        "the head has no batch norm",
    ]
    work = flops_per_step(sound.params, 2)
    assert set(work) == {"student", "projection head"}
    assert "teacher's weights" not in bytes_moved(sound.params, 2)
    assert bytes_moved(sound.params, 2)["views"] > 0
