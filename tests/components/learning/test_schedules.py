"""Schedules against their closed forms, and how they scale to short runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from components.errors import VitrailError
from components.learning.schedules import Schedule, ScheduleParams, Schedules, cosine_schedule, scaled_learning_rate
from components.params import parse_params


@given(st.floats(1e-6, 1), st.floats(0, 1), st.integers(1, 200), st.integers(0, 200))
def test_cosine_with_warmup_is_its_formula(peak: float, end: float, total: int, warmup: int) -> None:
    warmup = min(warmup, total)
    values = cosine_schedule(peak, end, total, warmup)
    assert len(values) == total
    rest = total - warmup
    for i in range(warmup):
        expected = peak * i / (warmup - 1) if warmup > 1 else 0.0
        assert values[i] == pytest.approx(expected, abs=1e-12)
    for i in range(rest):
        expected = end + 0.5 * (peak - end) * (1 + math.cos(math.pi * i / rest))
        assert values[warmup + i] == pytest.approx(expected, abs=1e-12)


def test_the_warmup_includes_its_end_and_the_cosine_its_start() -> None:
    values = Schedule(peak=1.0, end=0.0, warmup=5).values(15)
    np.testing.assert_allclose(values[:6], [0, 0.25, 0.5, 0.75, 1, 1])
    assert 0 < values[-1] < 0.03  # one step above the end, as the original


def test_constant_after_warmup() -> None:
    values = Schedule(start=0.04, peak=0.07, warmup=30, shape="constant").values(100)
    assert values[0] == 0.04
    assert values[29] == 0.07
    assert (values[29:] == 0.07).all()
    assert values[15] == pytest.approx(0.04 + 0.03 * 15 / 29)


@given(st.integers(1, 2000))
def test_fractions_scale_with_the_run_and_iterations_do_not(total: int) -> None:
    by_fraction = Schedule(peak=1.0, end=0.1, warmup=0.25).values(total)
    by_number = Schedule(peak=1.0, end=0.1, warmup=round(0.25 * total)).values(total)
    np.testing.assert_array_equal(by_fraction, by_number)
    assert len(Schedule(peak=1.0, end=0.1, warmup=5000).values(total)) == total


def test_a_short_run_of_the_long_recipe_leaves_its_warmup() -> None:
    values = Schedules(ScheduleParams(), total=1000, batch=1024)
    rates = [values.at(i).learning_rate for i in range(1000)]
    assert np.argmax(rates) in (159, 160)
    assert max(rates) == pytest.approx(2e-4)
    assert rates[-1] < 2e-6
    assert values.at(60).teacher_temperature == 0.07
    assert values.at(0).teacher_temperature == 0.04
    assert values.at(0).momentum == 0.994
    assert values.at(999).momentum == pytest.approx(1.0, abs=1e-6)
    assert values.at(0).weight_decay == pytest.approx(0.04)
    assert values.at(999).weight_decay == pytest.approx(0.2, abs=1e-5)


def test_the_last_layer_stands_still_at_first() -> None:
    params = ScheduleParams(freeze_last_layer=3)
    values = Schedules(params, total=100, batch=1024)
    assert [values.at(i).last_layer_learning_rate for i in range(3)] == [0, 0, 0]
    assert values.at(2).learning_rate > 0
    assert all(values.at(i).last_layer_learning_rate == values.at(i).learning_rate for i in range(3, 100))
    assert values.at(1000) == values.at(99)  # beyond the end the last values hold


@pytest.mark.parametrize(
    ("base", "batch", "actual"), [(4e-3, 2048, 5.66e-3), (2e-4, 3072, 3.46e-4), (7.07e-4, 2048, 1e-3)]
)
def test_learning_rates_of_the_recipes(base: float, batch: int, actual: float) -> None:
    assert scaled_learning_rate(base, batch) == pytest.approx(actual, rel=2e-3)
    params = ScheduleParams(learning_rate=Schedule(peak=base, end=1e-6, warmup=0.1))
    values = Schedules(params, 1000, batch)
    assert max(values.learning_rate) == pytest.approx(actual, rel=2e-3)
    assert values.learning_rate[-1] < 1e-6 + actual * 1e-5  # the floor does not grow with the batch
    assert scaled_learning_rate(1.0, 512, "linear") == 0.5
    assert scaled_learning_rate(1.0, 512, "none") == 1.0


def test_lengths_that_mean_nothing_are_refused() -> None:
    for wrong in (-1, 1.5, -0.1, True):
        with pytest.raises(ValidationError, match=r"fraction of the run|not true or false"):
            Schedule(peak=1.0, warmup=wrong)
    with pytest.raises(VitrailError, match=r"unknown key 'learning_rate\.warm_up'; did you mean 'warmup'"):
        parse_params({"learning_rate": {"peak": 1e-3, "warm_up": 0.1}}, ScheduleParams, "params/x.yaml")
    assert isinstance(Schedule(peak=1.0, warmup=1).warmup, int)
    assert isinstance(Schedule(peak=1.0, warmup=1.0).warmup, float)


@pytest.mark.parametrize(
    "given",
    [
        {"warmup": 60.0}, {"warmup": "0.1"}, {"warmup": 10**15}, {"peak": -1e-3}, {"peak": 11.0}, {"end": -1e-9},
        {"start": -0.1},
    ],
)  # fmt: skip
def test_a_schedule_outside_of_what_makes_sense_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Schedule.model_validate({"peak": 1.0, **given})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"freeze_last_layer": 10.0}, "without point or exponent, as in 10"),
        ({"learning_rate": {"peak": 0.0}}, "learning_rate.peak: must be more than 0"),
        ({"momentum": {"peak": 0.9, "end": 1.5}}, "momentum.end: 1.5 is no share"),
        ({"teacher_temperature": {"peak": 0.07, "warmup": 0.1}}, "teacher_temperature.start: must be more than 0"),
    ],
)
def test_schedules_that_harm_name_the_value(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ScheduleParams.model_validate(given)
