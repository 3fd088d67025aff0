"""A deferred module is the real one, executed at its first use."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import threading
from pathlib import Path

import pytest

from components.deferred_imports import absent, deferred, entry_points_read_once, later


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


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package vitrail_large, with a module `heavy` that leaves a file when it is loaded, and one that uses it."""
    folder = tmp_path / "vitrail_large"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "heavy.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w').close()\n"
        "class Heavy:\n    size = 3\ndef double(n):\n    return 2 * n\n"
    )
    (folder / "user.py").write_text(
        "from vitrail_large.heavy import Heavy, double\n"
        "def used(value: Heavy | None): return isinstance(value, Heavy)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("vitrail_large", "vitrail_large.heavy", "vitrail_large.user"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def heavy(name: str) -> bool:
    return name == "vitrail_large.heavy"


def test_names_of_a_later_module_load_it_at_their_first_use(package: Path) -> None:
    with later(heavy):
        user = importlib.import_module("vitrail_large.user")
    assert "vitrail_large.heavy" not in sys.modules
    assert not (package / "executed").exists()
    assert user.double(4) == 8
    assert (package / "executed").exists()
    real = importlib.import_module("vitrail_large.heavy")
    assert user.Heavy.size == 3
    assert user.used(real.Heavy())
    assert not user.used(3)

    class Heavier(user.Heavy): ...  # type: ignore[name-defined]

    assert issubclass(Heavier, real.Heavy)


def test_a_later_module_may_be_used_inside_its_block(package: Path) -> None:
    with later(heavy):
        user = importlib.import_module("vitrail_large.user")
        assert user.double(4) == 8
        assert importlib.import_module("vitrail_large.heavy").Heavy.size == 3
    assert sys.modules["vitrail_large"].heavy is sys.modules["vitrail_large.heavy"]


def test_other_threads_import_as_ever(package: Path) -> None:
    found: list[object] = []
    with later(heavy), absent("vitrail_large.user"):
        thread = threading.Thread(target=lambda: found.append(importlib.import_module("vitrail_large.user").Heavy.size))
        thread.start()
        thread.join()
    assert found == [3]


def test_entry_points_are_read_once_inside_the_block_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, read = importlib.metadata.entry_points, list[int]()

    def counted(**chosen: object) -> object:
        read.append(1)
        return plain(**chosen)

    monkeypatch.setattr(importlib.metadata, "entry_points", counted)
    groups = ("console_scripts", "pytest11", "no such group")
    expected = [sorted(plain(group=group)) for group in groups]
    with entry_points_read_once():
        assert [sorted(importlib.metadata.entry_points(group=group)) for group in groups] == expected
        assert len(read) == 1
        assert [point.name for point in importlib.metadata.entry_points(group="pytest11", name="cov")] in ([], ["cov"])
    assert importlib.metadata.entry_points is counted
