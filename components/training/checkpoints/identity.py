"""What a run's numbers depend on: the parameters that change results, and digests of what it reads.

Each parameter says beside its model whether it changes results (:class:`components.params.Effect`). Two runs of equal
identity compute the same numbers, so that one may go on with the other's checkpoints. Images a rank and step are kept
beside it: another split of the same step into micro-batches or ranks is the same run, another number of images is not.

A newer version of this program may have parameters that an older checkpoint does not name. The default of such a
parameter is what the older version did, so a run that leaves it there is still the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from components.params import fingerprint

IMAGES = "images a step"


@dataclass(frozen=True)
class Identity:
    """Of a run, or of one of its phases."""

    params: Mapping[str, Any]  # by dotted name
    inputs: Mapping[str, str]  # digests by name: data, teacher, ...
    images: int = 0  # run.batch x engine.accumulation; 0: not known
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of params, by dotted name; no part of the identity

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex); equal exactly where params and inputs are."""
        return fingerprint(dict(self.params), dict(self.inputs))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"params": dict(self.params), "inputs": dict(self.inputs), "images": self.images}


Changes = dict[str, tuple[Any, Any]]  # name -> before, now


def changes(before: Mapping[str, Any] | None, now: Identity) -> Changes:
    """What differs from ``before``, which is another identity's :meth:`Identity.plain`; empty where it is not known."""
    if before is None:
        return {}
    found: Changes = {}
    for part in ("params", "inputs"):
        old, new = before[part], getattr(now, part)
        if part == "params":
            old = {name: value for name, value in now.defaults.items() if name in new} | old
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                found[name] = (old.get(name), new.get(name))
    return found


def listed(found: Changes) -> str:
    """``run.seed 0 -> 1, data 12ab... -> 98fe...``"""
    return ", ".join(f"{name} {_short(old)} -> {_short(new)}" for name, (old, new) in found.items())


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else text[:12] + "..."
