"""Flow ``benchmark``: every checkpoint of this workspace scored and compared."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.launch import run_families


@flow(name="benchmark")
def benchmark() -> State[Any]:
    """Run the stage benchmark."""
    return run_families("benchmark")
