"""Flow ``continue``: training goes on from a model, ``prefect deployment run continue/vits --param start=FOLDER``."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.launch import run_continued


@flow(name="continue")
def continue_training(preset: str, start: str | None = None) -> State[Any]:
    """Check that this machine can train ``preset``, train it on from ``start``, and compare the end with the start.

    ``start`` is any name of a model: a file or folder of this checkout, ``s3://``, a pinned URL, or the registry's.
    Left out, it is the preset's own ``init``.
    """
    return run_continued(preset, start)
