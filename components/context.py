"""What every stage is given beside its parameters: ``run(params, inputs, outputs, context)`` in each ``stage.py``.

``params`` is the stage's parameter model, ``inputs`` a small frozen dataclass beside the stage, ``outputs`` the folder
that it makes. The command line (``run.py``) reads files into these; a stage itself reads no parameter file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.storage import StorageParams
from components.tracking import TrackingParams


@dataclass(frozen=True)
class StageContext:
    """What all stages share."""

    storage: StorageParams  # where image shards and exported weights lie
    tracking: TrackingParams | None  # None: nothing is recorded in MLflow
    report: Path | None  # JSON file of the stage's figures; None: no such file
    scratch: Path = Path("scratch")  # training state, which is no output
