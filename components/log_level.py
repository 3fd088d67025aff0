"""Another level for a library's logger, for as long as a block runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def at_level(name: str, level: int) -> Iterator[None]:
    """The logger ``name`` passes on lines of ``level`` and above; its level before comes back at the end."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
