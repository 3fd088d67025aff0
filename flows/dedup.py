"""Flow ``dedup``: the curated index in, the training manifest out."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.launch import run_families


@flow(name="dedup")
def dedup() -> State[Any]:
    """Run the stage dedup."""
    return run_families("dedup")
