"""A deferred module is the real one, executed at its first use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from components.deferred_imports import absent, deferred


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that leaves a file when it is executed; not imported yet."""
    (tmp_path / "vitrail_noisy.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\nvalue = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "vitrail_noisy", raising=False)
    return "vitrail_noisy"


def test_a_module_is_executed_at_its_first_use(module: str, tmp_path: Path) -> None:
    with deferred(module):
        found = __import__(module)
    assert not (tmp_path / "executed").exists()
    assert found.value == 3
    assert (tmp_path / "executed").exists()
    sys.modules.pop(module)


def test_a_name_taken_from_a_module_is_a_use(module: str) -> None:
    with deferred(module):
        from vitrail_noisy import value
    assert value == 3
    sys.modules.pop(module)


def test_afterwards_and_for_other_names_imports_are_as_ever(module: str, tmp_path: Path) -> None:
    finders = list(sys.meta_path)
    with deferred("vitrail_other", "vitrail_not_installed"), pytest.raises(ModuleNotFoundError):
        import vitrail_not_installed  # noqa: F401
    assert sys.meta_path == finders
    with deferred("vitrail_other"):
        __import__(module)
    assert (tmp_path / "executed").exists()
    sys.modules.pop(module)


def test_an_absent_module_is_not_found_inside_the_block_alone(module: str, tmp_path: Path) -> None:
    finders = list(sys.meta_path)
    with absent(module), pytest.raises(ModuleNotFoundError, match=module):
        __import__(module)
    assert sys.meta_path == finders
    assert not (tmp_path / "executed").exists()
    assert __import__(module).value == 3
    sys.modules.pop(module)
