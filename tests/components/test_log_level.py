"""A library's logger speaks again after the block, whatever happened in it."""

from __future__ import annotations

import logging

import pytest

from components.log_level import at_level


def test_the_level_before_comes_back_after_a_fault_too(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("vitrail-test-log-level")
    logger.setLevel(logging.INFO)
    with at_level(logger.name, logging.ERROR):
        logger.warning("held back")
    with pytest.raises(ZeroDivisionError), at_level(logger.name, logging.ERROR):
        _ = 1 / 0
    assert logger.level == logging.INFO
    logger.info("heard")
    assert caplog.messages == ["heard"]
