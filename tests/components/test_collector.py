"""The garbage collector is on again after the last block that pauses it; it does not walk over what stays."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from components import collector
from components.collector import collector_paused, imported_to_stay
from components.errors import run_cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("on", [True, False])
def test_it_is_as_before_after_the_last_block(on: bool) -> None:
    before = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        first, second = collector_paused(), collector_paused()
        first.__enter__()
        second.__enter__()
        assert not gc.isenabled()
        first.__exit__(None, None, None)  # not the one that began last: blocks of two threads
        assert not gc.isenabled()
        second.__exit__(None, None, None)
        assert gc.isenabled() is on
    finally:
        (gc.enable if before else gc.disable)()


def test_a_fault_inside_ends_the_pause() -> None:
    before = gc.isenabled()
    with pytest.raises(ValueError, match="inside"), collector_paused():
        raise ValueError("inside")
    assert gc.isenabled() is before


def test_what_is_there_after_the_first_import_is_frozen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    monkeypatch.setattr(collector, "_REPORTING", frozenset())
    before = gc.isenabled()
    monkeypatch.delitem(sys.modules, "large_library", raising=False)
    for _ in range(2):
        with imported_to_stay("large_library"):
            assert not gc.isenabled()
            monkeypatch.setitem(sys.modules, "large_library", ModuleType("large_library"))
    assert frozen == [before]


def test_an_import_that_fails_freezes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: pytest.fail("frozen"))
    with pytest.raises(ImportError), imported_to_stay("no_such_library"):
        raise ImportError("no_such_library")
    assert gc.isenabled()


def test_no_garbage_is_searched_for_when_a_command_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[int] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))
    monkeypatch.setattr(collector, "_REPORTING", frozenset())
    monkeypatch.setattr(sys, "argv", ["python -m", "a"])
    assert run_cli(lambda argv: len(argv)) == 1
    assert frozen == [1]
    run_cli(lambda argv: len(argv), ["a"])  # called by a program that goes on
    assert frozen == [1]


def test_a_library_that_reports_what_was_not_freed_has_nothing_to_report() -> None:
    script = "import duckdb\nfrom components.collector import leave_alone\nleave_alone()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
