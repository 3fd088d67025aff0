"""The GPU day's machinery: parts that fail or hang cost only themselves, and its page can be written again."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.params import load_params
from components.training.params import TrainingParams
from perf import gpu_day
from perf.gpu_day import Day, page, plan, run

STEP = {"batch": 64, "fp16": {"packed, eager": {"images_per_second": 900.0, "share_of_matmul_rate": 0.41}, "x: y": 1.1}}
FIGURES = {
    "device": {"name": "H100", "torch": "2.11"},
    "tests": {"said": "9 passed", "seconds": 3.0},
    "step vits": {"vits": STEP, "seconds": 20.0},
    "curve": {"raw_pixels_knn": 0.34},
}


def test_a_part_that_fails_says_what_it_printed_last(tmp_path: Path) -> None:
    found = run(["timeit", "-n", "1", "-r", "1", "raise SystemExit('no such card')"], 60)
    assert found["failed"] == 1
    assert "no such card" in found["said"]


def test_a_part_over_its_time_is_ended_and_its_figures_so_far_are_kept() -> None:
    work = "import time; open(r'{out}', 'w').write('[1]'.replace('[1]', '{{\"a\": 1}}')); time.sleep(600)"
    found = run(["timeit", "-n", "1", "-r", "1", work], 10)
    assert found["failed"] == "ended after 10 s"
    assert found["a"] == 1


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_parts_leave_time_for_the_curve(device: str) -> None:
    assert sum(part.share for part in plan(Day(device))) < 0.75


def test_the_page_gets_a_section_a_device_and_writing_it_again_changes_nothing() -> None:
    text = "# Performance\n\n## Training\n\nwords\n"
    once = page(text, FIGURES)
    assert once.startswith(text.rstrip())
    assert "| fp16, packed, eager | 900.0 | 0.41 | - |" in once
    assert page(once, FIGURES) == once
    other = page(once, FIGURES | {"device": {"name": "A100", "torch": "2.11"}})
    assert "### H100, torch 2.11" in other
    assert "### A100, torch 2.11" in other
    assert page(other, FIGURES).count("### H100") == 1


def test_what_follows_the_section_stays() -> None:
    text = f"# Performance\n\n{gpu_day.HEADING}\n\n### Old card, torch 1\n\nwords\n\n## Neighbours\n\nmore\n"
    found = page(text, FIGURES)
    assert found.endswith("## Neighbours\n\nmore\n")
    assert "### Old card, torch 1\n\nwords\n" in found


def test_the_preset_of_its_curve_is_valid() -> None:
    params = load_params(gpu_day.PRESETS / "vits_cifar.yaml", TrainingParams)
    assert params.vit.image_size == params.augment.global_size == 32
