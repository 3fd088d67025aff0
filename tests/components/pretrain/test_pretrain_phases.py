"""A run that goes on at a larger size, on one and on two ranks: what is carried over, resumption, export, faults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_worker
from stage_worker import STUDENT, curate
from test_pretrain_stage import timeless

from components.distill.method import DistillParams
from components.errors import VitrailError
from components.learning.schedules import Schedules
from components.params import parse_params
from components.training.checkpoints.checkpoint import load_backbone, load_heads
from components.training.params import TrainingParams

WORKER = Path(__file__).with_name("phases_worker.py")
LARGER = {"size": 32, "local_size": 16, "iterations": 10, "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("phases")
    curate(folder)
    run_worker(WORKER, folder)
    places = [["one/facts-0.json"], ["two/facts-0.json", "two/facts-1.json"]]
    return folder, [[json.loads((folder / name).read_text()) for name in names] for names in places]


@pytest.mark.parametrize("ranks", [1, 2])
def test_student_teacher_and_average_are_carried_over_with_their_positions_interpolated(
    runs: tuple[Path, list[list[dict[str, Any]]]], ranks: int
) -> None:
    for facts in runs[1][ranks - 1]:
        assert facts["unbroken"]["raised"] == ""
        assert facts["switch"]["equal"] == [True] * 5
        assert facts["switch"]["differ"] == 3  # a table each of student, average and gram teacher
        assert facts["switch"]["moments"] == 0
        assert facts["switch"]["features"] < 1e-5


@pytest.mark.parametrize("ranks", [1, 2])
def test_resumed_in_either_phase_equals_the_unbroken_run_byte_by_byte(
    runs: tuple[Path, list[list[dict[str, Any]]]], ranks: int
) -> None:
    facts = runs[1][ranks - 1][0]
    assert ranks == 2 or "stopped by SIGTERM after step 4" in facts["stopped in the first"]["raised"]
    # in the last step of the first, before that step's probe: neither the signal nor the probe is lost
    assert ranks == 2 or "stopped by SIGTERM after step 6" in facts["stopped between them"]["raised"]
    assert "model, high-resolution: stopped by SIGTERM after step 8" in facts["stopped in the second"]["raised"]
    assert not facts["stopped in the second"]["files"]
    assert "resuming after step 8" in facts["resumed"]["printed"]
    assert "pretrain model: " not in facts["resumed"]["printed"]  # the first phase is not entered again
    assert len(facts["unbroken"]["files"]) == 2
    assert facts["resumed"]["files"] == facts["unbroken"]["files"]
    assert timeless(facts["resumed"]["curve"]) == timeless(facts["unbroken"]["curve"])
    # the count goes on to the end of the run, where its loader changes and where its size does
    counts = re.findall(
        r"^pretrain model(?:, high-resolution)?: (\d+/\d+) steps in", facts["unbroken"]["printed"], re.M
    )
    assert counts == ["3/11", "6/11", "11/11"]


def test_another_number_of_ranks_takes_over_between_the_phases(runs: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    for facts in runs[1][1]:
        assert facts["other ranks"]["raised"] == ""
        assert facts["elastic switch"]["equal"] == [True] * 5


def test_one_model_of_the_larger_size_is_exported(runs: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    folder = runs[0] / "one" / "a"
    backbone, card = load_backbone(folder / "model")
    assert (card.image_size, card.vit.image_size, card.step) == (32, 32, 11)
    assert backbone.embeddings.pos_embed.shape == (1, 17, 18)
    assert load_heads(folder / "model")[1] is not None
    with torch.no_grad():
        assert torch.isfinite(backbone(torch.randn(2, 3, 32, 32)).cls).all()
    curve = json.loads((folder / "model" / "curve.json").read_text())
    assert [point["step"] for point in curve["points"]] == [2, 3, 4, 6, 8, 10, 11]  # 3: the loader's work changes
    assert [probe["step"] for probe in curve["probes"]] == [0, 3, 6, 8, 11]  # start, half and end of each
    report = json.loads((folder / "report.json").read_text())
    assert report["iterations"] == 11
    assert report["images_seen"] == 6 * 4 * 2 + 5 * 2 * 3


def test_gram_counts_from_its_start_and_changes_nothing_before(
    runs: tuple[Path, list[list[dict[str, Any]]]],
) -> None:
    points = {
        name: {point["step"]: point for point in json.loads((runs[0] / "one" / name).read_text())["points"]}
        for name in ("a/model/curve.json", "g/model/curve.json")
    }
    with_gram, without = points.values()
    assert [with_gram[step]["gram"] > 0 for step in (2, 3, 4, 6, 8, 11)] == [False, False, True, True, True, True]
    assert "gram" not in without[2]
    same = ("loss", "dino_global", "ibot", "koleo", "grad_norm_backbone")
    assert [with_gram[2][name] for name in same] == [without[2][name] for name in same]
    assert with_gram[4]["grad_norm_backbone"] != without[4]["grad_norm_backbone"]


def test_pictures_are_shown_of_both_phases(runs: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    images = {(key, step): shape for key, step, shape in runs[1][0][0]["images"]}
    sizes = {0: 16, 3: 16, 6: 16, 8: 32, 11: 32}
    shown = {(key, step): size for key in ("crops", "pca") for step, size in sizes.items()}
    assert shown.keys() <= images.keys()
    # a column a crop (both global ones, each masked, and two local ones in cells as large); an image and its features
    cells = {place: (6 if place[0] == "crops" else 2) * size for place, size in shown.items()}
    assert {place: images[place] for place in shown} == {
        place: [2 * size, cells[place], 3] for place, size in shown.items()
    }


def test_compiled_blocks_compute_what_eager_ones_do_under_zero3(
    runs: tuple[Path, list[list[dict[str, Any]]]],
) -> None:
    facts = runs[1][1][0]
    assert facts["compiled"]["raised"] == ""
    assert facts["graphs"] > 0
    eager, own = (
        json.loads((runs[0] / "two" / run / "model" / "curve.json").read_text())["points"][0] for run in ("a", "d")
    )
    for name in ("loss", "ibot", "koleo", "grad_norm_backbone"):  # of the second step: gram counts later
        assert own[name] == pytest.approx(eager[name], rel=1e-4)


def test_a_changed_second_phase_leaves_the_first_alone(runs: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    facts = runs[1][0][0]
    assert facts["another phase"]["raised"] == ""
    assert "high-resolution/step-00000011 was trained with other params" in facts["another phase"]["printed"]
    assert "resuming after step 6" in facts["another phase"]["printed"]
    assert not facts["state left"]


def test_a_run_starts_from_an_exported_model_at_its_size_or_another(
    runs: tuple[Path, list[list[dict[str, Any]]]],
) -> None:
    folder, facts = runs[0] / "one", runs[1][0][0]
    assert facts["started"]["raised"] == ""
    before = load_heads(folder / "b/model")[0].last_layer.weight_v
    after = load_heads(folder / "d/model")[0].last_layer.weight_v
    assert 0 < float((before - after).detach().abs().max()) < 0.05  # six steps from where the other ended
    assert load_backbone(folder / "d/model")[1].image_size == 32


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("another network", "is another network: vit.patch_size is 4, there 8; vit.depth is 3, there 2"),
        ("shared heads", "is another network: heads.ibot is null, there given"),
        ("no such model", "nowhere: no such file or folder of a model"),
    ],
)
def test_a_start_that_does_not_fit_is_one_line(
    runs: tuple[Path, list[list[dict[str, Any]]]], run: str, message: str
) -> None:
    raised = runs[1][0][0][run]["raised"]
    assert message in raised
    assert "\n" not in raised


def test_all_schedules_are_compressed_into_the_phase() -> None:
    schedule = {
        "learning_rate": {"peak": 1e-3, "end": 1e-6, "warmup": 20},
        "learning_rate_rule": "none",
        "teacher_temperature": {"start": 0.04, "peak": 0.07, "warmup": 0.3, "shape": "constant"},
        "freeze_last_layer": 10,
    }
    content = STUDENT | {"schedule": schedule, "run": {"iterations": 100, "batch": 4}, "high_resolution": LARGER}
    first, second = TrainingParams.model_validate(content).phases()
    assert (first.first, first.last, second.first, second.last) == (0, 100, 100, 110)
    assert second.params.augment.local_size == 16
    assert second.params.masks == first.params.masks
    assert (first.params.grid(), second.params.grid()) == ((2, 2), (4, 4))
    assert first.params.high_resolution is second.params.high_resolution is None
    long, short = (Schedules(p.params.schedule, p.params.run.iterations, 8) for p in (first, second))
    assert (short.learning_rate.argmax() + 1, long.learning_rate.argmax() + 1) == (2, 20)
    assert short.learning_rate.max() == pytest.approx(1e-4)
    assert (short.last_layer == 0).sum() == 1
    assert short.teacher_temperature[[0, 2]] == pytest.approx([0.04, 0.07])
    assert (short.momentum[0], short.weight_decay[0]) == (long.momentum[0], long.weight_decay[0])
    alone = TrainingParams.model_validate(content | {"high_resolution": None})
    assert (
        alone.fingerprint("d")
        == first.params.fingerprint("d")
        == TrainingParams.model_validate(content).fingerprint("d")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"high_resolution": LARGER | {"size": 33}},
            "high_resolution.size 33 is no multiple of vit.patch_size 8; use for instance 32",
        ),
        (
            {"high_resolution": LARGER | {"local_size": 9}},
            "high_resolution.local_size 9 is no multiple of vit.patch_size 8",
        ),
        (
            {"augment": {"global_size": 17, "local_size": 8}},
            "augment.global_size 17 is no multiple of vit.patch_size 8",
        ),
        ({"high_resolution": {"size": 32}}, "the key 'high_resolution.learning_rate' is missing"),
    ],
)
def test_sizes_that_cannot_be_cut_into_patches_are_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(VitrailError) as fault:
        parse_params(STUDENT | change, TrainingParams, "params/pretrain/own.yaml")
    assert message in str(fault.value)
    assert "\n" not in str(fault.value)


def test_distillation_has_no_such_phase_and_says_so() -> None:
    with pytest.raises(VitrailError, match="high_resolution: of pretraining only"):
        parse_params(STUDENT | {"high_resolution": LARGER}, DistillParams, "own.yaml")
