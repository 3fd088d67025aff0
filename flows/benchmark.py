"""Flow ``benchmark``: every checkpoint of this workspace scored and compared, and what they must reach."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.launch import run_benchmark


@flow(name="benchmark")
def benchmark(preset: str | None = None) -> State[Any]:
    """Run the stage benchmark, then the gate of ``params/gate.yaml``: the run fails with the rows that fall short.

    Args:
        preset: the gate asks this preset's checkpoint alone; all of them without it.
    """
    return run_benchmark(preset)
