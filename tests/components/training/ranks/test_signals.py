"""Signals are noted while a run trains; after a SIGTERM, further ones stay without effect."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from components.training.ranks.signals import Signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it runs in the background without it
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_both_handlers_come_back_where_nothing_was_asked() -> None:
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    with Signals() as signals:
        assert signals.name == ""
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_ctrl_c_is_noted_and_works_again_afterwards() -> None:
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
    assert signals.name == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_does_not_cut_off_the_last_words() -> None:
    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # would end this process
    assert signals.name == "SIGTERM"
