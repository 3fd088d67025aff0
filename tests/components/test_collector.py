"""The garbage collector is on again when the last of the blocks that pause it has ended."""

from __future__ import annotations

import gc

import pytest

from components.collector import collector_paused


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
