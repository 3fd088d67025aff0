"""One line of progress with the rate and the time left, for terminals and for logs alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """``seconds`` in words: ``45 s``, ``3 min 20 s``, ``2 h 05 min``, ``3 d 04 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


class Progress:
    """Counts finished units and prints at most one line every ``every`` seconds (and one at the end).

    Lines, not a redrawn bar: the same output serves a terminal, a Prefect log and a file. ``start`` units were finished
    before, by a run that this one resumes: they count as done, but not for the rate.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        unit: str = "",
        every: float = 5.0,
        out: TextIO | None = None,
        start: int = 0,
    ) -> None:
        self.label, self.total, self.unit, self.every = label, total, unit, every
        self.done = self._before = start
        self._out = out or sys.stderr
        self._start = self._last = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Report ``count`` more finished units; ``note`` (losses, say) is appended to the line."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= self.every:
            self._last = now
            self._print(now, note)

    def close(self, note: str = "") -> None:
        """Print the last line with the whole time."""
        elapsed = time.monotonic() - self._start
        print(f"{self.label}: {self._counted()} in {duration(elapsed)}{_after(note)}", file=self._out, flush=True)

    def _counted(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.done:,}{unit}" if self.total is None else f"{self.done:,}/{self.total:,}{unit}"

    def _print(self, now: float, note: str) -> None:
        elapsed = max(now - self._start, 1e-9)
        rate = (self.done - self._before) / elapsed
        left = ""
        if self.total is not None and rate > 0:
            left = f", {duration((self.total - self.done) / rate)} left"
        print(f"{self.label}: {self._counted()}, {rate:.3g}/s{left}{_after(note)}", file=self._out, flush=True)


def _after(note: str) -> str:
    return f" | {note}" if note else ""


def track(items: Iterable[Item], label: str, total: int | None = None, *, unit: str = "") -> Iterator[Item]:
    """Yield ``items`` while reporting progress."""
    progress = Progress(label, total, unit=unit)
    for item in items:
        yield item
        progress.advance()
    progress.close()
