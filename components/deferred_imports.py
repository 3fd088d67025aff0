"""Modules that another library imports and that we never use, executed at their first use or not found at all.

Great Expectations, for one, imports altair and jsonschema; no run of a stage uses them. Python's own
``importlib.util.LazyLoader`` postpones such a module (:func:`deferred`): it is the real one, and it is loaded when an
attribute of it is read. ``from module import name`` reads one. There the name itself has to wait (:func:`later`).

Only imports of the thread that opened a block are changed.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.metadata
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Union


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
def later(chosen: Callable[[str], bool]) -> Iterator[None]:
    """Inside the block a module whose full name is ``chosen`` is not loaded: names taken from it wait for their use.

    ``from module import name`` gives a stand-in. To call it, read an attribute of it, derive from it or check an
    instance loads the module, and goes to the real object. Afterwards the module is imported as ever. What a module
    does when it is loaded, such as adding itself to a register, is left out; so choose those that nothing looks up.
    """
    finder = _Later(chosen)
    with _asked_first(finder):
        try:
            yield
        finally:
            for name in finder.made:
                _forget(name)


@contextlib.contextmanager
def entry_points_read_once() -> Iterator[None]:
    """Inside the block the entry points of installed packages are read from disk once, not at every question.

    MLflow asks for seven groups when it is imported, and each answer reads the files of all packages.
    """
    plain = importlib.metadata.entry_points
    known: list[Any] = []

    def entry_points(**chosen: Any) -> Any:
        if not known:
            known.append(plain())
        return known[0].select(**chosen) if chosen else known[0]

    importlib.metadata.entry_points = entry_points
    try:
        yield
    finally:
        if importlib.metadata.entry_points is entry_points:
            importlib.metadata.entry_points = plain


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
        self._thread = threading.get_ident()

    def asked(self, fullname: str) -> bool:
        """Whether this finder has a say in the import of ``fullname``."""
        return fullname in self._names and threading.get_ident() == self._thread


class _Absent(_Named):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.asked(fullname):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


class _Deferred(_Named):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self.asked(fullname):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


class _Later(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds chosen modules, and gives empty ones whose names are stand-ins."""

    def __init__(self, chosen: Callable[[str], bool]) -> None:
        self._chosen, self._thread = chosen, threading.get_ident()
        self.made: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if threading.get_ident() != self._thread or not self._chosen(fullname) or fullname in _WANTED:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.made.append(spec.name)
        return _Hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


_WANTED: set[str] = set()  # chosen modules that were used all the same, while their block was still open


class _Hollow(ModuleType):
    """In the place of a module that waits."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(self.__name__, name)


def _forget(module: str) -> None:
    """Take a hollow module out of the place of the real one."""
    above, _, name = module.rpartition(".")
    if isinstance(sys.modules.get(module), _Hollow):
        del sys.modules[module]
    parent = vars(sys.modules[above]) if above in sys.modules else {}
    if isinstance(parent.get(name), _Hollow):
        del parent[name]


class _StandIn:
    """In the place of ``name`` of ``module``, which it loads at its first use."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        if "_found" not in vars(self):
            parts = self._module.split(".")
            for name in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
                _WANTED.add(name)
                _forget(name)
            self._found = getattr(importlib.import_module(self._module), self._name)
        return self._found

    def __getattr__(self, name: str) -> Any:
        if name == "__parameters__" or name.startswith("__typing_"):  # an annotation such as Union[it, None] asks
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self._real()[key]

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._real())

    def __or__(self, other: Any) -> Any:  # in annotations
        return Union[self, other]  # noqa: UP007 - of two values

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007
