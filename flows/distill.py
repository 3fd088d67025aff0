"""Flow ``distill``: a smaller student from a teacher that is already trained."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.launch import run_preset


@flow(name="distill")
def distill(preset: str, teacher: str | None = None) -> State[Any]:
    """Run the stage of ``preset``; ``teacher`` is needed only where params/pipeline.yaml does not list the preset."""
    return run_preset("distill", preset, teacher)
