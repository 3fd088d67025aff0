"""How a command was called, for its usage line: ``vitrail dedup`` or ``python -m components.dedup``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_CALLED: ContextVar[str] = ContextVar("called", default="")


def prog(module: str) -> str:
    """The name that a usage line begins with, for the command ``python -m module``."""
    return _CALLED.get() or f"python -m {module}"


@contextlib.contextmanager
def called(name: str) -> Iterator[None]:
    """Usage lines of the block begin with ``name``."""
    token = _CALLED.set(name)
    try:
        yield
    finally:
        _CALLED.reset(token)
