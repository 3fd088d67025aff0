"""The planner's memory against the peak of real steps; its shards are held to the byte in test_engine.py."""

from __future__ import annotations

import pytest

from perf.plan import peaks

CHANGES = ("run.batch=32", "run.batch=16,run.activation_checkpointing=true", "vit.embed_dim=256,run.batch=4")


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, object]]:
    return peaks(1, CHANGES)


@pytest.mark.parametrize("change", CHANGES)
def test_predicted_peak_is_within_15_percent_of_the_measured(found: dict[str, dict[str, object]], change: str) -> None:
    assert found[change]["predicted_over_measured"] == pytest.approx(1, abs=0.15)
