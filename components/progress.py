"""Progress with rate and time left: a live bar on a terminal, plain lines in a log, and a file for other terminals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")

_COUNTED = re.compile(r": ([\d,]+)/([\d,]+)\b")
_published: list[tuple[int, Path]] = []  # (process, file) of each :func:`publish` that is open, the innermost last


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


@contextlib.contextmanager
def publish(path: Path) -> Iterator[None]:
    """Inside, the progress of this process is also in ``path``, for :func:`published`. The file is removed after."""
    entry = (os.getpid(), path)
    _published.append(entry)
    try:
        yield
    finally:
        _published.remove(entry)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def published(path: Path) -> tuple[str, float] | None:
    """The last line that a run published in ``path``, and its time (seconds since 1970); None if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["line"]), float(found["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Progress:
    """Counts finished units and shows them, with the rate and the time left.

    On a terminal this is one bar (tqdm). Elsewhere it is at most one line every ``every`` seconds, which serves a
    Prefect log and a file, and one line at the end. ``start`` units were finished before, by a run that this one
    resumes: they count as done, but not for the rate.
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
        self._bar = self._terminal() if self._out.isatty() else None
        self._publish(f"{self.label}: {self._counted()}")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Report ``count`` more finished units; ``note`` (losses, say) is shown beside them."""
        self.done += count
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(self.done - self._bar.n)
        now = time.monotonic()
        if now - self._last >= self.every and self.done != self.total:  # the last line is close's
            self._last = now
            line = self._line(now, note)
            if self._bar is None:
                print(line, file=self._out, flush=True)
            self._publish(line)

    def close(self, note: str = "") -> None:
        """Print the last line with the whole time."""
        if self._bar is not None:
            self._bar.close()
        elapsed = time.monotonic() - self._start
        line = f"{self.label}: {self._counted()} in {duration(elapsed)}{_after(note)}"
        print(line, file=self._out, flush=True)
        self._publish(line)

    def _terminal(self) -> Any:
        from tqdm import tqdm

        return tqdm(
            desc=self.label, total=self.total, initial=self.done, unit=f" {self.unit}" if self.unit else " items",
            file=self._out, leave=False, dynamic_ncols=True,
        )  # fmt: skip

    def _counted(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.done:,}{unit}" if self.total is None else f"{self.done:,}/{self.total:,}{unit}"

    def _line(self, now: float, note: str) -> str:
        elapsed = max(now - self._start, 1e-9)
        rate = (self.done - self._before) / elapsed
        left = ""
        if self.total is not None and rate > 0:
            left = f", {duration((self.total - self.done) / rate)} left"
        return f"{self.label}: {self._counted()}, {rate:.3g}/s{left}{_after(note)}"

    def _publish(self, line: str) -> None:
        """Leave ``line`` for other terminals. A fault of the disk is no reason to end the work."""
        if not _published or _published[-1][0] != os.getpid():  # a worker process that was forked is silent
            return
        path = _published[-1][1]
        aside = path.with_name(f"{path.name}.partial")
        with contextlib.suppress(OSError):
            aside.write_text(json.dumps({"line": line, "time": time.time()}), encoding="utf-8")
            os.replace(aside, path)


def share_done(line: str) -> float | None:
    """The share (0 ... 1) that a line of :class:`Progress` reports; None for a line without a count and a total."""
    match = _COUNTED.search(line)
    if match is None:
        return None
    done, total = (int(part.replace(",", "")) for part in match.groups())
    return min(1.0, done / total) if total > 0 else None


def _after(note: str) -> str:
    return f" | {note}" if note else ""


def track(items: Iterable[Item], label: str, total: int | None = None, *, unit: str = "") -> Iterator[Item]:
    """Yield ``items`` while reporting progress."""
    progress = Progress(label, total, unit=unit)
    for item in items:
        yield item
        progress.advance()
    progress.close()
