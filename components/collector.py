"""Python's garbage collector, paused while much is made that stays: large libraries when they are imported."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_pauses = 0
_was_on = False


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
