"""The part of the command line that pretraining and distillation share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.command_line import ParamsOptions, as_options
from components.params import load_params
from components.storage import StorageParams, is_remote
from components.training.inputs import TrainingInputs

if TYPE_CHECKING:
    from components.context import StageContext


@as_options
class TrainingRunOptions(ParamsOptions):
    """Options of ``run`` that both stages have. ``--stage pretrain@vitt`` is an abbreviation of some of them."""

    curated: Path
    """Folder of index, shards.json and shards."""
    manifest: Path
    """Parquet table of the images to train on."""
    out: Path
    """Folder of the exported model."""
    report: Path
    """JSON file for the run's figures."""
    scratch: str | None = None
    """Training state (default: scratch/STAGE). With s3://bucket/prefix, copies go there, to resume from elsewhere."""
    storage: Path = Path("params/storage.yaml")
    """Where image shards lie."""
    tracking: Path = Path("params/tracking.yaml")
    """How runs are recorded in MLflow."""
    no_tracking: bool = False
    """Record nothing in MLflow."""
    benchmarks: Path = Path("params/benchmarks.yaml")
    """Parameter file of the labelled images that probes use."""

    def inputs(self) -> TrainingInputs:
        """What the run reads."""
        return TrainingInputs(self.params, self.curated, self.manifest, self.benchmarks)

    def context(self, stage: str) -> StageContext:
        """What the run shares with every stage; ``stage`` names the folder of its training state."""
        from components.context import StageContext
        from components.tracking import TrackingParams

        tracking = None if self.no_tracking else load_params(self.tracking, TrackingParams)
        storage = load_params(self.storage, StorageParams)
        scratch, copies = self.scratch or str(Path("scratch") / stage), None
        if is_remote(scratch):
            scratch, copies = str(Path("scratch") / stage), scratch
        elif storage.checkpoints is not None:
            copies = f"{storage.checkpoints.rstrip('/')}/{stage}"
        return StageContext(storage, tracking, self.report, Path(scratch), copies)
