from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import VitrailError
from components.learning.collapse import CollapseParams, Detector, feature_figures

HEALTHY = {"feature_rank": 20.0, "feature_std": 0.8, "prototype_usage": 0.9, "cross_entropy": 0.7}


def test_rank_and_spread_of_known_clouds() -> None:
    generator = torch.Generator().manual_seed(0)
    ball = torch.randn(4000, 8, generator=generator)
    found = feature_figures(ball)
    assert float(found["feature_rank"]) == pytest.approx(8, rel=0.01)
    assert float(found["feature_std"]) == pytest.approx(1, rel=0.02)
    line = torch.randn(100, 1, generator=generator) * torch.randn(8, generator=generator) + 3
    assert float(feature_figures(line)["feature_rank"]) == pytest.approx(1, abs=0.01)
    point = feature_figures(torch.full((50, 8), 1.7))
    assert point["feature_rank"].shape == point["feature_std"].shape == ()
    assert float(point["feature_rank"]) == 0
    assert float(point["feature_std"]) < 1e-3
    for odd in (math.nan, math.inf):  # of a step that is skipped: no reason to end the run
        ball[3, 2] = odd
        assert all(math.isnan(float(value)) for value in feature_figures(ball).values())


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(2, 9), st.floats(0.01, 100), st.integers(0, 99))
def test_rank_is_that_of_the_singular_values_whatever_scale_and_shift(n: int, d: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.randn(n, d, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals(cloud - cloud.mean(0))
    share = values / values.sum()
    expected = math.exp(float(torch.special.entr(share).sum()))
    for moved in (cloud, cloud * scale, cloud + 2):
        assert float(feature_figures(moved)["feature_rank"]) == pytest.approx(expected, rel=1e-3)
    unit = torch.nn.functional.normalize(cloud, dim=-1)
    assert float(feature_figures(cloud)["feature_std"]) == pytest.approx(float(unit.std(0).mean()) * d**0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("figure", "value"),
    [("feature_rank", 1.1), ("feature_std", 0.01), ("prototype_usage", 0.02), ("cross_entropy", 1.0)],
)
def test_a_sign_that_stays_stops_the_run_with_its_name(figure: str, value: float) -> None:
    detector = Detector(CollapseParams(action="stop", after=100, patience=50), total=1000)
    ill = HEALTHY | {figure: value}
    for step in range(0, 100, 10):
        assert detector.look(step, ill) == ""  # warming up
    for step in range(100, 150, 10):
        assert detector.look(step, ill) == ""  # patient
    with pytest.raises(
        VitrailError, match=rf"step 150: collapsed: {figure} is {value:.3g}, .* since step 100"
    ) as fault:
        detector.look(150, ill)
    assert "\n" not in str(fault.value)


def test_one_healthy_point_begins_the_wait_anew_and_a_skipped_one_does_not() -> None:
    detector = Detector(CollapseParams(action="stop", after=0, patience=20), total=100)
    ill = HEALTHY | {"feature_std": 0.0}
    for step in (0, 10, 19):
        assert detector.look(step, ill) == ""
    assert detector.look(20, HEALTHY) == ""
    for step in (30, 40):
        assert detector.look(step, ill) == ""
    assert detector.look(45, ill | {"feature_std": float("nan")}) == ""
    assert detector.look(47, {}) == ""  # the logged step was skipped: it has no figures at all
    with pytest.raises(VitrailError, match="since step 30"):
        detector.look(50, ill)


def test_a_resumed_detector_has_not_forgotten_since_when_it_waits() -> None:
    ill, params = HEALTHY | {"feature_rank": 1.0}, CollapseParams(action="warn", after=0, patience=20)
    whole, before, after = (Detector(params, total=100) for _ in range(3))
    said = [whole.look(step, ill) for step in (0, 10, 20, 30)]
    assert said[:2] == [before.look(step, ill) for step in (0, 10)]
    after.load(json.loads(json.dumps(before.state())))
    assert said[2:] == [after.look(step, ill) for step in (20, 30)]
    assert "since step 0" in said[2]
    assert said[3] == ""  # told already
    again = Detector(params, total=100)
    again.load(json.loads(json.dumps(after.state())))
    assert again.look(40, ill) == ""


def test_warns_once_a_stretch_or_keeps_silent() -> None:
    ill = HEALTHY | {"cross_entropy": 1.0}
    warn = Detector(CollapseParams(action="warn", after=0.0, patience=10), total=100)
    assert [bool(warn.look(step, ill)) for step in (0, 10, 20)] == [False, True, False]
    off = Detector(CollapseParams(action="off", after=0, patience=1), total=100)
    assert not any(off.look(step, ill) for step in range(10))
    unasked = Detector(CollapseParams(action="stop", after=0, patience=1, cross_entropy=None), total=100)
    assert not any(unasked.look(step, ill) for step in range(10))
    assert warn.look(50, {}) == ""  # a method without these figures
