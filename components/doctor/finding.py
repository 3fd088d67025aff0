"""What a check found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "note", "bad"]  # note: worth knowing, nothing is broken


@dataclass(frozen=True)
class CheckResult:
    """One line of the doctor."""

    level: Level
    what: str  # the subject: disk, GPU, ...
    found: str
    do: str = ""  # what to do about it; empty where there is nothing to do

    def __str__(self) -> str:
        mark = {"ok": "ok  ", "note": "note", "bad": "BAD "}[self.level]
        return f"{mark}  {self.what}: {self.found}" + (f"\n      -> {self.do}" if self.do else "")


Check = Callable[[Path], Iterator[CheckResult]]  # of the checkout's root
