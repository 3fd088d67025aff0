"""What every stage is given beside its parameters: ``run(params, inputs, outputs, context)`` in each ``stage.py``.

``params`` is the stage's parameter model, ``inputs`` a small frozen dataclass beside the stage, ``outputs`` the folder
that it makes. The command line (``run.py``) reads files into these; a stage itself reads no parameter file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.storage import StorageParams, Store, open_store
from components.tracking import TrackingParams


@dataclass(frozen=True)
class StageContext:
    """What all stages share."""

    storage: StorageParams  # where image shards and exported weights lie
    tracking: TrackingParams | None  # None: nothing is recorded in MLflow
    report: Path | None  # JSON file of the stage's figures; None: no such file
    scratch: Path = Path("scratch")  # training state, which is no output
    checkpoints: str | None = None  # s3://bucket/prefix that copies of the training state go to; None: nowhere

    def checkpoint_store(self, *below: str) -> Store | None:
        """Where the copies of one run's checkpoints stand: in the folder ``below`` (empty parts are left out)."""
        if self.checkpoints is None:
            return None
        return open_store(self.storage.model_copy(update={"root": self.checkpoints}), *filter(None, below))
