"""Which limits a stage waits for: one run a workspace, and the machine's GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows import limits


def test_each_workspace_has_a_limit_of_its_own_that_prefect_takes_as_a_name(tmp_path: Path) -> None:
    names = {limits.workspace_limit(tmp_path / name) for name in ("a", "b/a", "Ä % / ü")}
    assert len(names) == 3
    assert all(re.fullmatch(r"workspace-[a-z0-9-]+", name) for name in names)
    assert limits.workspace_limit(tmp_path / "x/../a") == limits.workspace_limit(tmp_path / "a")


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,2,3", 3), ("GPU-a,GPU-b", 2)])
def test_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert limits.gpus() == count


@pytest.mark.parametrize(
    ("stage", "there", "taken"),
    [
        ("pretrain@auto", 8, 8),
        ("pretrain@two", 8, 2),
        ("pretrain@two", 1, 1),
        ("pretrain@unknown", 4, 4),
        ("benchmark", 8, 1),
        ("dedup", 0, 0),
        ("crawl", 8, 0),
        ("release embed", 2, 1),
        ("release export", 2, 0),
    ],
)
def test_training_takes_the_gpus_that_its_preset_asks_for(tmp_path: Path, stage: str, there: int, taken: int) -> None:
    (tmp_path / "params/pretrain").mkdir(parents=True)
    (tmp_path / "params/pretrain/auto.yaml").write_text("run: {processes: auto}\n")
    (tmp_path / "params/pretrain/two.yaml").write_text("run: {processes: 2}\n")
    assert limits.gpus_for(stage, tmp_path, there) == taken
