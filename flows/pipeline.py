"""Flow ``pipeline``: all stages that params/pipeline.yaml names, as ``dvc repro`` would run them."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.launch import run_families


@flow(name="pipeline")
def pipeline() -> State[Any]:
    """Run every stage, in the order of the graph."""
    return run_families()
