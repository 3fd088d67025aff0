"""Signals that ask a training run to end, noted and obeyed between two steps."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Signals:
    """SIGTERM and SIGINT noted while the block runs, to be obeyed between two steps.

    After a SIGTERM the process is to end, and further ones stay without effect: a launcher and a flow both send one,
    and the second must not cut off what the command says on its way out.
    """

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if not (number == signal.SIGTERM and self.name == "SIGTERM"):
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
