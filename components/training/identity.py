"""What a run's numbers depend on: the parameters that change results, and digests of what it reads.

Each parameter says beside its model whether it changes results (:class:`components.params.Effect`). Two runs of equal
identity compute the same numbers, so that one may go on with the other's checkpoints. Images a rank and step are kept
beside it: another split of the same step into micro-batches or ranks is the same run, another number of images is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from components.params import fingerprint

IMAGES = "images a step"


@dataclass(frozen=True)
class Identity:
    """Of a run, or of one of its phases."""

    params: Mapping[str, Any]  # by dotted name
    inputs: Mapping[str, str]  # digests by name: data, teacher, ...
    images: int = 0  # run.batch x engine.accumulation; 0: not known

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex); equal exactly where params and inputs are."""
        return fingerprint(dict(self.params), dict(self.inputs))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


Changes = dict[str, tuple[Any, Any]]  # name -> before, now


def changes(before: Mapping[str, Any] | None, now: Identity) -> Changes:
    """What differs from ``before``, which is another identity's :meth:`Identity.plain`; empty where it is not known."""
    if before is None:
        return {}
    found: Changes = {}
    for part in ("params", "inputs"):
        old, new = before[part], getattr(now, part)
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
