"""Python's garbage collector, kept from what stays: large libraries, when they are imported and ever after."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_pauses = 0
_was_on = False
_REPORTING = frozenset({"_duckdb"})  # at the end of a process they report on stderr what of theirs was not freed


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage is searched for inside the block; for seconds of work that makes little garbage.

    A library's start makes hundreds of thousands of objects that stay, and the collector walks over them again and
    again. Blocks may overlap in several threads: the last one to end turns it on again, if it was on.
    """
    global _pauses, _was_on
    with _lock:
        if not _pauses:
            _was_on = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if not _pauses and _was_on:
                gc.enable()


@contextlib.contextmanager
def imported_to_stay(module: str) -> Iterator[None]:
    """The collector rests inside the block, which imports ``module``, and afterwards leaves alone what is there.

    That is so for the first import alone: what is frozen again and again would keep garbage, too.
    """
    first = module not in sys.modules
    with collector_paused():
        yield
    if first:
        leave_alone()


def leave_alone() -> None:
    """The collector never again walks over the objects that are there now, not even when the process ends."""
    if not sys.modules.keys() & _REPORTING:
        gc.freeze()
