"""Flow ``pretrain``: one preset's teacher, ``prefect deployment run pretrain/vitt --watch``."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.launch import run_preset


@flow(name="pretrain")
def pretrain(preset: str) -> State[Any]:
    """Check that this machine can train ``preset``, then run its stage."""
    return run_preset("pretrain", preset)
