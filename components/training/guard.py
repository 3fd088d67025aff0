"""Does a run forget what its weights knew? kNN at every probe beside kNN before the first step.

A backbone that was good already can lose it in a few hundred steps, when new heads or too high a rate pull at it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from components.errors import VitrailError
from components.params import NEUTRAL, Share, Strict

_KNN = re.compile(r"/knn\d+$")  # end of the scores' names; those of raw pixels end otherwise


class GuardParams(Strict):
    """When a fall of kNN is told."""

    effect: ClassVar = NEUTRAL
    OFF: ClassVar = {"action": "off"}

    action: Literal["off", "warn", "stop"] = "warn"
    # share of the probe's held-out images that kNN may lose. With 400 of them, chance alone moves it by 0.025
    fall: Share = 0.05


def fall_of_knn(probes: Sequence[Mapping[str, float]], params: GuardParams) -> str:
    """A line where the last of ``probes`` is too far below the one before the first step, "" where it is not.

    Args:
        probes: scores by name, each with its ``step``; those of one run, in order.
    """
    if params.action == "off" or not probes:
        return ""
    start, now = probes[0], probes[-1]
    if start["step"] != 0 or now["step"] == 0:  # nothing to compare with, as of a run without probes until now
        return ""
    falls = [(start[name] - now[name], name) for name in now if _KNN.search(name) and name in start]
    fall, name = max(falls, default=(0.0, ""))
    if fall <= params.fall:
        return ""
    return (
        f"step {now['step']:.0f}: {name} is {now[name]:.1%}, {100 * fall:.1f} points below the {start[name]:.1%} before"
        f" the first step (probe.guard.fall allows {100 * params.fall:g}): lower schedule.learning_rate.peak or "
        "groups.layer_decay, raise init_heads.iterations or init_heads.ramp, or set groups.frozen_blocks"
    )


def require_no_fall(line: str, params: GuardParams) -> None:
    """Nothing, unless there is a ``line`` of :func:`fall_of_knn` and the guard's action is "stop".

    Raises:
        VitrailError: both are so.
    """
    if line and params.action == "stop":
        raise VitrailError(f"{line}; to go on nevertheless set probe.guard.action: warn, the checkpoints are kept")
