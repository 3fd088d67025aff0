"""Values per iteration: learning rate, weight decay, EMA momentum, teacher temperature.

Lengths are iterations when whole numbers (``warmup: 1000``) and shares of the run when fractions (``warmup: 0.1``), so
one preset serves runs of any length.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from components.params import CHANGES, Strict


def _length(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError("a length is a whole number of iterations, or a fraction of the run from 0.0 to 1.0")
    if isinstance(value, float) and value > 1:
        hint = f", as in {value:.0f}" if value.is_integer() else ""
        raise ValueError(
            "a fraction of the run lies between 0.0 and 1.0; iterations are written without point or exponent" + hint
        )
    return value


Length = Annotated[int | float, BeforeValidator(_length), Field(ge=0, le=10**12)]


def iterations_of(length: int | float, total: int) -> int:
    """A :data:`Length` as iterations of a run of ``total``."""
    return min(round(length * total) if isinstance(length, float) else length, total)


ScheduleValue = Annotated[float, Field(ge=0, le=10)]  # of a rate, a decay, a momentum or a temperature


class Schedule(Strict):
    """A linear warm-up from ``start`` to ``peak``, then a half cosine to ``end``, or ``peak`` to the end."""

    effect: ClassVar = CHANGES
    peak: ScheduleValue
    end: ScheduleValue | None = None  # of the cosine; unused by "constant"
    start: ScheduleValue = 0.0  # of the warm-up
    warmup: Length = 0
    shape: Literal["cosine", "constant"] = "cosine"

    def levels(self) -> dict[str, float]:
        """The values that the schedule goes through, by name; those that it never takes are left out."""
        found = {"peak": self.peak}
        found |= {"start": self.start} if self.warmup else {}
        return found | ({"end": self.end} if self.shape == "cosine" and self.end is not None else {})

    def values(self, total: int) -> np.ndarray:
        """fp64 ``[total]``, one value an iteration."""
        warmup = iterations_of(self.warmup, total)
        if self.shape == "constant" or self.end is None:
            return constant_schedule(self.peak, total, warmup, self.start)
        return cosine_schedule(self.peak, self.end, total, warmup, self.start)


def cosine_schedule(peak: float, end: float, total: int, warmup: int = 0, start: ScheduleValue = 0.0) -> np.ndarray:
    """``end + (peak - end) (1 + cos(pi i / n)) / 2`` for i in [0, n), after a linear warm-up to ``peak``.

    ``n = total - warmup``: the last value lies one step above ``end``, as in DINO's schedule.
    """
    rest = np.arange(total - warmup)
    falling = end + 0.5 * (peak - end) * (1 + np.cos(math.pi * rest / max(len(rest), 1)))
    return np.concatenate([np.linspace(start, peak, warmup), falling])


def constant_schedule(value: float, total: int, warmup: int = 0, start: ScheduleValue = 0.0) -> np.ndarray:
    """``value`` after a linear warm-up from ``start`` that includes both ends."""
    return np.concatenate([np.linspace(start, value, warmup), np.full(total - warmup, value)])


def scaled_learning_rate(
    base: float, batch: int, rule: Literal["sqrt", "linear", "none"] = "sqrt", reference: int = 1024
) -> float:
    """A rate given for ``reference`` images a batch, for ``batch`` images: times the ratio or its root."""
    ratio = batch / reference
    return base * {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[rule]


class ScheduleParams(Strict):
    """Every schedule of a run; the defaults are the long recipe's, its lengths as shares of 625,000 iterations."""

    effect: ClassVar = CHANGES
    learning_rate: Schedule = Schedule(peak=2e-4, end=1e-6, warmup=0.16)  # for a batch of `reference_batch`
    learning_rate_rule: Literal["sqrt", "linear", "none"] = "sqrt"
    reference_batch: int = Field(default=1024, gt=0, le=1_000_000)  # images
    weight_decay: Schedule = Schedule(peak=0.04, end=0.2)
    momentum: Schedule = Schedule(peak=0.994, end=1.0)  # of the teacher's EMA
    teacher_temperature: Schedule = Schedule(start=0.04, peak=0.07, warmup=0.06, shape="constant")
    freeze_last_layer: Length = 0.002  # the last layer's rate is 0 for so long: 1 epoch of 500

    @model_validator(mode="after")
    def _makes_sense(self) -> ScheduleParams:
        if self.learning_rate.peak <= 0:
            raise ValueError("learning_rate.peak: must be more than 0, for nothing is learned at a rate of 0")
        for name, value in self.momentum.levels().items():
            if value > 1:
                raise ValueError(f"momentum.{name}: {value} is no share; an average keeps between 0 and 1 of itself")
        for name, value in self.teacher_temperature.levels().items():
            if value <= 0:
                raise ValueError(f"teacher_temperature.{name}: must be more than 0, for logits are divided by it")
        return self


def compressed(params: ScheduleParams, before: int, now: int) -> ScheduleParams:
    """Schedules of a run of ``before`` iterations for one of ``now``: lengths in iterations shrink in proportion."""

    def length(value: int | float) -> int | float:
        return value if isinstance(value, float) else round(value * now / before)

    names = ("learning_rate", "weight_decay", "momentum", "teacher_temperature")
    shorter = {
        name: schedule.model_copy(update={"warmup": length(schedule.warmup)})
        for name, schedule in ((name, getattr(params, name)) for name in names)
    }
    return params.model_copy(update={**shorter, "freeze_last_layer": length(params.freeze_last_layer)})


class InitHeadsParams(Strict):
    """New projection heads on a backbone that is trained already: they learn first, then the backbone joins."""

    effect: ClassVar = CHANGES
    iterations: int = Field(ge=1, le=10**12)  # steps in which the heads alone learn
    ramp: Length = 0.1  # steps after them in which the backbone's rate rises from 0 to the schedule's, linearly

    def backbone_shares(self, total: int) -> np.ndarray:
        """fp64 ``[total]``: what share of the rate the backbone learns at, an iteration."""
        ramp = iterations_of(self.ramp, total)
        steps = np.arange(total) - self.iterations + 1
        return np.clip(steps / max(ramp, 1), 0.0, 1.0)


class StepValues(NamedTuple):
    """What one iteration runs with."""

    learning_rate: float
    last_layer_learning_rate: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    backbone_share: float = 1.0  # of the rate: below 1 while new heads learn ahead of it


class Schedules:
    """The values of a run, ``schedules.at(iteration)``; beyond the last iteration the last value holds."""

    def __init__(
        self, params: ScheduleParams, total: int, batch: int, init_heads: InitHeadsParams | None = None
    ) -> None:
        """For ``total`` iterations of ``batch`` images over all ranks."""
        rate = params.learning_rate
        factor = scaled_learning_rate(1.0, batch, params.learning_rate_rule, params.reference_batch)
        # the peak grows with the batch; the floor is absolute, as in the original
        self.learning_rate = rate.model_copy(update={"peak": rate.peak * factor}).values(total)
        self.last_layer = self.learning_rate.copy()
        self.last_layer[: iterations_of(params.freeze_last_layer, total)] = 0.0
        self.weight_decay = params.weight_decay.values(total)
        self.momentum = params.momentum.values(total)
        self.teacher_temperature = params.teacher_temperature.values(total)
        self.backbone_shares = np.ones(total) if init_heads is None else init_heads.backbone_shares(total)
        self.total = total

    def at(self, iteration: int) -> StepValues:
        """The values of ``iteration``, counted from 0."""
        i = min(max(iteration, 0), self.total - 1)
        columns = (self.learning_rate, self.last_layer, self.weight_decay, self.momentum, self.teacher_temperature)
        return StepValues(*(float(column[i]) for column in (*columns, self.backbone_shares)))
