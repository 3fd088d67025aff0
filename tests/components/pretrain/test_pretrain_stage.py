"""Both stages on a tiny curated set: exports, exact resumption after SIGTERM, damaged and foreign checkpoints."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE

from components.code_version import commit
from components.images.quarantine import read_quarantine
from components.release.weights.load import load_model, weights_digests
from components.training.checkpoints.checkpoint import load_backbone, load_card, load_heads

WORKER = Path(__file__).with_name("stage_worker.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stages")
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | {
        "OMP_NUM_THREADS": "1"
    }
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder), s3_endpoint],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "facts.json").read_text())


def timeless(curve: dict[str, Any]) -> dict[str, Any]:
    """A ``curve.json`` without what a clock measured."""
    del curve["seconds"]
    for point in curve["points"]:
        del point["images_per_second"]
    return curve


def test_new_heads_learn_first_and_then_the_backbone_joins(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = runs
    assert "came without projection heads; set init_heads" in facts["headless"]["raised"]
    assert facts["continued"]["raised"] == ""
    before, after = (
        load_model(folder / "headless").backbone.state_dict(),
        load_backbone(folder / "c/model")[0].state_dict(),
    )
    for name in before:  # the moving average of what stays as it is may differ in the last bit
        moved = float((before[name] - after[name]).abs().max())
        frozen = name.startswith(("embeddings.", "blocks.0."))
        assert moved < 1e-6 if frozen else moved > 1e-6, (name, moved)
    assert load_heads(folder / "c/model")[0].config.prototypes == 32
    card = load_card(folder / "c/model")
    assert card.kind == "continue"
    assert card.init is not None
    assert (card.init.source, card.init.data_digests) == (str(folder / "headless"), ())
    assert card.init.sha256 == weights_digests(folder / "headless")
    assert card.commit == commit()
    assert load_card(folder / "a/model").init is None


def test_exports_a_model_with_curves_and_a_report(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = runs
    assert facts["unbroken"]["raised"] == ""
    backbone, card = load_backbone(folder / "b/model")
    assert (card.kind, card.step, card.vit.embed_dim, card.image_size) == ("pretrain", 6, 24, 16)
    with torch.no_grad():
        assert torch.isfinite(backbone(torch.randn(2, 3, 16, 16)).cls).all()
    assert load_heads(folder / "b/model")[1] is None  # shared
    curve = json.loads((folder / "b/model/curve.json").read_text())
    assert [point["step"] for point in curve["points"]] == [2, 4, 6]
    assert {"loss", "dino_global", "dino_local", "ibot", "koleo", "grad_norm_backbone"} <= curve["points"][0].keys()
    assert [probe["step"] for probe in curve["probes"]] == [0, 3, 6]  # 0: before it has learned anything
    names = {"kind/knn3", "kind/linear", "kind-mosaic/miou", "kind-mosaic/pixel_accuracy"}
    for probe in curve["probes"]:
        assert probe.keys() == {"step"} | {f"probe/toy/{n}{end}" for n in names for end in ("", "_raw_pixels")}
        assert all(0 <= value <= 1 for name, value in probe.items() if name != "step")
    report = json.loads((folder / "b/model.json").read_text())
    assert report["images_seen"] == 6 * 4 * 2
    assert report["final"]["loss"] > 0


def test_progress_names_losses_and_rate(runs: tuple[Path, dict[str, Any]]) -> None:
    last = runs[1]["unbroken"]["printed"].splitlines()[-1]
    assert last.startswith("pretrain model: 6/6 steps in ")
    assert "ibot" in last
    assert "images/s" in last


def test_sigterm_checkpoints_and_the_next_run_equals_the_unbroken_one_byte_by_byte(
    runs: tuple[Path, dict[str, Any]],
) -> None:
    _, facts = runs
    assert facts["stopped"]["raised"].startswith("Stopped: pretrain model: stopped by SIGTERM after step 4")
    assert "run the same command again to resume" in facts["stopped"]["raised"]
    assert "step-00000004" in facts["left"]
    assert facts["no_export_yet"]
    assert "resuming after step 4" in facts["resumed"]["printed"]
    assert len(facts["unbroken files"]) == 2
    assert facts["resumed files"] == facts["unbroken files"]


def test_a_stopped_contrastive_run_resumed_equals_the_unbroken_one_byte_by_byte(
    runs: tuple[Path, dict[str, Any]],
) -> None:
    folder, facts = runs
    assert facts["contrastive"]["raised"] == ""
    assert facts["stopped contrastive"]["raised"].startswith("Stopped: pretrain model: stopped by SIGTERM after step 4")
    assert facts["stopped contrastive files"] == {}
    assert "resuming after step 4" in facts["resumed contrastive"]["printed"]
    assert len(facts["contrastive files"]) == 2
    assert facts["resumed contrastive files"] == facts["contrastive files"]
    unbroken, resumed = (timeless(json.loads((folder / f"{name}/model/curve.json").read_text())) for name in "vw")
    assert unbroken["points"][0]["contrastive"] > 0
    assert resumed == unbroken


def test_it_was_resumed_on_another_machine_from_the_copies_on_s3(runs: tuple[Path, dict[str, Any]]) -> None:
    _, facts = runs
    assert re.search(r"s3://vitrail-test/\S+/model/step-00000004\.\w+: fetched to ", facts["resumed"]["printed"])
    assert facts["copies left"] == ["latest.json", "notes/mlflow-run"]  # and of checkpoints, the newest two
    assert facts["copies of steps"] == ["step-00000004", "step-00000006"]


def test_a_resumed_run_goes_on_in_the_mlflow_run_that_was_stopped(runs: tuple[Path, dict[str, Any]]) -> None:
    [stopped], [resumed] = runs[1]["record stopped"], runs[1]["record resumed"]
    assert stopped["status"] == "FAILED"
    assert "stopped by SIGTERM" in stopped["error"]
    assert stopped["steps"] == [2, 4]
    assert resumed["id"] == stopped["id"]
    assert (resumed["status"], resumed["error"]) == ("FINISHED", "")
    assert resumed["steps"] == [2, 4, 6]
    assert resumed["models"] == ["model-step3", "model-step6"]


def test_curves_of_a_resumed_run_are_those_of_the_unbroken_one_but_for_times(
    runs: tuple[Path, dict[str, Any]],
) -> None:
    unbroken, damaged, resumed, other, apart = (
        timeless(curve)
        for curve in (
            runs[1]["unbroken curve"],
            runs[1]["damaged curve"],
            *(json.loads((runs[0] / name / "model/curve.json").read_text()) for name in ("b", "l", "m")),
        )
    )
    assert [point["step"] for point in unbroken["points"]] == [2, 4, 6]
    assert [point["step"] for point in other["points"]] == [4, 6]
    assert resumed == damaged == unbroken
    assert apart == other  # stopped between two points


def test_a_signal_goes_before_a_probe_which_the_next_start_makes_up_for(runs: tuple[Path, dict[str, Any]]) -> None:
    _, facts = runs
    assert facts["stopped at a probe"]["raised"].startswith("Stopped: pretrain model: stopped by SIGTERM after step 3")
    assert facts["probed before the stop"] == [0]
    curve = json.loads((runs[0] / "m/model/curve.json").read_text())
    assert [probe["step"] for probe in curve["probes"]] == [0, 3, 6]


def test_probes_change_no_weight(runs: tuple[Path, dict[str, Any]]) -> None:
    _, facts = runs
    assert facts["unprobed"]["raised"] == ""
    assert facts["unprobed files"] == facts["unbroken files"]


def test_a_damaged_newest_checkpoint_gives_way(runs: tuple[Path, dict[str, Any]]) -> None:
    printed = runs[1]["damaged"]["printed"]
    assert "step-00000006: damaged, trying the one before" in printed
    assert "resuming after step 4" in printed
    assert runs[1]["damaged files"] == runs[1]["unbroken files"]


def test_other_params_are_refused_or_start_anew(runs: tuple[Path, dict[str, Any]]) -> None:
    _, facts = runs
    assert "was trained with other params or data" in facts["refused"]["raised"]
    assert "moved aside to" in facts["fresh"]["printed"]
    assert facts["fresh"]["raised"] == ""
    assert facts["state_removed"]


def test_a_longer_run_goes_on_when_asked_to_and_its_curves_say_so(runs: tuple[Path, dict[str, Any]]) -> None:
    _, facts = runs
    assert facts["longer"]["raised"] == ""
    assert "(run.iterations 6 -> 8): continuing after step 6 under the new ones" in facts["longer"]["printed"]
    curve = facts["longer curve"]
    assert [point["step"] for point in curve["points"]] == [2, 4, 6, 8]
    assert curve["changes"] == [{"after_step": 6, "changes": {"run.iterations": [6, 8]}}]


def test_what_changes_no_number_needs_no_asking(runs: tuple[Path, dict[str, Any]]) -> None:
    _, facts = runs
    assert facts["other split"]["raised"] == ""
    assert "resuming after step 8" in facts["other split"]["printed"]


def test_a_run_that_is_longer_already_than_is_asked_for_is_not_exported_as_shorter(
    runs: tuple[Path, dict[str, Any]],
) -> None:
    assert "trained 8 steps already, of 3 that run.iterations asks for" in runs[1]["shorter"]["raised"]


def test_a_full_disk_ends_the_run_in_one_line_and_costs_nothing_that_was_saved(
    runs: tuple[Path, dict[str, Any]],
) -> None:
    _, facts = runs
    line = facts["full"]["raised"]
    assert line.startswith("VitrailError: checkpoint of step 4 not written: rank 0: ")
    assert "allows no larger file while writing" in line  # what the disk says is passed on
    assert line.endswith("which the same command resumes")
    assert "\n" not in line
    left = ["step-00000002", "step-00000003"]  # whole, and nothing half-written beside them
    assert facts["left full"] == left  # the latter written before the probe of its step
    assert "resuming after step 3" in facts["after full"]["printed"]
    assert facts["after full files"] == facts["unbroken files"]


def test_bad_losses_are_skipped_with_the_keys_of_their_images_until_there_are_too_many(
    runs: tuple[Path, dict[str, Any]],
) -> None:
    facts = runs[1]
    assert facts["bad losses"]["raised"].startswith("VitrailError: 2 steps in a row had non-finite losses or gradients")
    assert [entry["step"] for entry in facts["skipped"]] == [2, 3]
    assert all(entry["reason"] == "non-finite loss" and len(entry["keys"]) == 4 for entry in facts["skipped"])
    first = next(line for line in facts["bad losses"]["printed"].splitlines() if line.startswith("step 2, rank 0"))
    assert "non-finite loss, step skipped" in first
    assert all(key in first for key in facts["skipped"][0]["keys"])


def test_a_batch_of_pixels_that_are_no_numbers_costs_its_step_and_nothing_after_it(
    runs: tuple[Path, dict[str, Any]],
) -> None:
    folder, facts = runs
    assert facts["bad pixels"]["raised"] == ""
    assert "step 2, rank 0: non-finite dino_global" in facts["bad pixels"]["printed"]
    assert facts["centers"] == {"whole/dino": True, "whole/ibot": True}
    curve = json.loads((folder / "k/model/curve.json").read_text())
    assert curve["skipped"] == 3  # of steps 2 (which is logged, too), 3 and 4
    last = curve["points"][-1]
    assert all(math.isfinite(last[name]) and last[name] > 0 for name in ("loss", "dino_global", "ibot", "feature_rank"))


def test_a_collapsed_run_is_stopped_with_the_sign_and_a_healthy_one_is_not(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = runs
    assert facts["healthy"]["raised"] == ""
    last = json.loads((folder / "i/model/curve.json").read_text())["points"][-1]
    assert {"feature_rank", "feature_std", "prototype_usage", "cross_entropy"} <= last.keys()
    line = facts["collapsed"]["raised"]
    assert line.startswith("VitrailError: step 50: collapsed: feature_std is 0.0")
    assert "since step 20: all images have nearly the same class token" in line
    assert "to go on nevertheless set collapse.action: warn" in line


def test_unreadable_images_are_set_aside(runs: tuple[Path, dict[str, Any]]) -> None:
    entries = read_quarantine(runs[0] / "scratch-a" / "quarantine")
    assert [entry.key for entry in entries] == [f"{7:020d}"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("no such benchmark", "probe.benchmark: 'toi' is not in"),
        ("no such task", "probe.dense.task: 'kin' is no label set of toy; there are kind; did you mean 'kind'"),
        ("other prototypes", "heads.dino.prototypes: 8, the teacher"),
        ("other patch", "vit.patch_size: 4 px, the teacher"),
        ("no teacher", "no such file or folder of a model"),
    ],
)
def test_faults_are_named(runs: tuple[Path, dict[str, Any]], run: str, message: str) -> None:
    assert message in runs[1][run]["raised"]


@pytest.mark.parametrize("out", ["d/model", "e/model"])
def test_distilled_student_is_smaller_and_knows_its_teacher(runs: tuple[Path, dict[str, Any]], out: str) -> None:
    folder, facts = runs
    assert facts["distilled"]["raised"] == facts["all patches"]["raised"] == ""
    card = load_card(folder / out)
    assert (card.kind, card.teacher, card.vit.embed_dim) == ("distill", "model", 16)
    load_backbone(folder / out)
    curve = json.loads((folder / out / "curve.json").read_text())
    assert all(point["loss"] > 0 for point in curve["points"])


def sides(calls: list[dict[str, Any]], widths: tuple[int, int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The teacher's passes and the student's: two micro-batches in each of two steps, turn about."""
    teacher, student = calls[::2], calls[1::2]
    assert len(calls) == 8
    assert ({call["width"] for call in teacher}, {call["width"] for call in student}) == ({widths[0]}, {widths[1]})
    assert not any(call["learns"] or call["trainable"] or call["locals"] for call in teacher)
    assert all(call["learns"] and call["trainable"] and call["locals"] for call in student)
    assert not any(call["hidden"] for call in teacher)  # the teacher sees whole crops, always
    assert [call["patches"] for call in teacher] == [call["patches"] for call in student]
    return teacher, student


@pytest.mark.parametrize(("run", "calls"), [("masked patches", "calls"), ("all patches", "calls all")])
def test_a_student_distilled_sees_whole_crops_and_its_teacher_stays_as_it_is(
    runs: tuple[Path, dict[str, Any]], run: str, calls: str
) -> None:
    facts = runs[1]
    assert facts[run]["raised"] == ""
    teacher, student = sides(facts[calls], (24, 16))
    assert not any(call["hidden"] for call in student)
    assert len({call["weights"] for call in teacher}) == 1
    assert len({call["weights"] for call in student}) == 2  # another in the second step
    everything = list(range(2 * 4 * 4))  # two crops of four images, of four patches
    for call in student:
        if run == "all patches":
            assert call["patches"] == everything
        else:
            assert 0 < len(call["patches"]) < len(everything)
            assert set(call["patches"]) < set(everything)


def test_a_pretrained_student_sees_masked_global_crops_and_its_average_whole_ones(
    runs: tuple[Path, dict[str, Any]],
) -> None:
    """The class tokens of the DINO loss are of these crops, too."""
    facts = runs[1]
    assert facts["seen"]["raised"] == ""
    teacher, student = sides(facts["calls pretrain"], (24, 24))
    assert all(call["hidden"] == len(call["patches"]) > 0 for call in student)
    assert [len({call["weights"] for call in side}) for side in (teacher, student)] == [2, 2]
    assert not any(call["training"] for call in teacher)
    assert all(call["training"] for call in student)
