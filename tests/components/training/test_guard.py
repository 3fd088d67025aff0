"""The guard of a run that goes on from trained weights: it tells, or stops, when kNN falls."""

from __future__ import annotations

import pytest
import torch

from components.errors import VitrailError
from components.training.guard import GuardParams, fall_of_knn
from components.training.loop import Curves, _note
from components.training.ranks.distributed import World

NAME = "probe/mine/kind/knn20"
ALONE = World(0, 1, 0, torch.device("cpu"))


def probes(*scores: float, first: int = 0) -> list[dict[str, float]]:
    """Of a run: kNN beside scores that nobody guards."""
    rest = {"probe/mine/kind/linear": 0.0, f"{NAME}_raw_pixels": 0.0, "probe/mine/kind-mosaic/miou": 0.0}
    rows = [{"step": float(first + 10 * i), NAME: score, **rest} for i, score in enumerate(scores)]
    rows[0] |= dict.fromkeys(rest, 1.0)
    return rows


def test_a_fall_is_told_with_what_to_do() -> None:
    line = fall_of_knn(probes(0.80, 0.79, 0.70), GuardParams(fall=0.05))
    assert line.startswith("step 20: probe/mine/kind/knn20 is 70.0%, 10.0 points below the 80.0% before the first step")
    assert "init_heads.ramp" in line
    assert "\n" not in line


def test_what_is_within_the_limit_or_has_no_beginning_is_not_told() -> None:
    assert fall_of_knn(probes(0.80, 0.75 + 1e-9), GuardParams(fall=0.05)) == ""
    assert fall_of_knn(probes(0.80), GuardParams(fall=0.0)) == ""
    assert fall_of_knn(probes(0.80, 0.1, first=10), GuardParams()) == ""  # an older run, without a probe before step 0
    assert fall_of_knn([], GuardParams()) == ""
    assert fall_of_knn(probes(0.80, 0.1), GuardParams(action="off")) == ""


def test_the_worst_of_several_tasks_is_told() -> None:
    rows = probes(0.80, 0.70)
    rows[0]["probe/mine/colour/knn20"], rows[1]["probe/mine/colour/knn20"] = 0.9, 0.6
    assert "probe/mine/colour/knn20 is 60.0%, 30.0 points" in fall_of_knn(rows, GuardParams())


def test_a_run_is_warned_or_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("warn", "stop"):
        curves, guard = Curves(probes=probes(0.80)), GuardParams(action=action)  # type: ignore[arg-type]
        _note(curves, 10, {NAME: 0.79}, guard, ALONE)
        assert capsys.readouterr().err == ""
        if action == "stop":
            with pytest.raises(VitrailError, match=r"to go on nevertheless set probe\.guard\.action: warn"):
                _note(curves, 20, {NAME: 0.60}, guard, ALONE)
        else:
            _note(curves, 20, {NAME: 0.60}, guard, ALONE)
            assert capsys.readouterr().err.startswith("warning: step 20: probe/mine/kind/knn20 is 60.0%")
        assert [point["step"] for point in curves.probes] == [0, 10, 20]
