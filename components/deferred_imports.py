"""Modules that another library imports and that we never use, executed at their first use or not found at all.

Great Expectations, for one, imports altair and jsonschema; no run of a stage uses them. Python's own
``importlib.util.LazyLoader`` postpones such a module: it is the real one, and it is loaded when an attribute of it is
read.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def deferred(*names: str) -> contextlib.AbstractContextManager[None]:
    """Imports of the modules ``names`` inside the block do not execute them, unless they are used.

    A name is a full one (``scipy.stats``), of a module that is written in Python. A module that is imported already,
    or is not installed, behaves as without the block.
    """
    return _asked_first(_Deferred(names))


def absent(*names: str) -> contextlib.AbstractContextManager[None]:
    """Imports of the modules ``names`` inside the block fail, as if they were not installed.

    For a library that does without what is not there, and that takes names from the module at import, so that
    :func:`deferred` would not help.
    """
    return _asked_first(_Absent(names))


@contextlib.contextmanager
def _asked_first(finder: importlib.abc.MetaPathFinder) -> Iterator[None]:
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Named(importlib.abc.MetaPathFinder):
    """Finds the modules ``names`` alone."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)


class _Absent(_Named):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


class _Deferred(_Named):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec
