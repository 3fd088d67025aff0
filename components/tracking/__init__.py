"""The only module that imports MLflow: runs, metrics, pictures, artifacts, and one LoggedModel a checkpoint.

    with tracking.run("pretrain", "pretrain vitt", params, config) as run:
        run.log_metrics({"train/loss": 7.2}, step=10)

Checkpoints are compared in the Models tab of the experiment, so every model's scores carry the same metric names and
the digest of the data set they were measured on.
"""

from components.tracking.interface import Run, null_run
from components.tracking.lineage import RecordedRun, Trained, fetch_state, trained_on
from components.tracking.params import TrackingParams
from components.tracking.session import run

__all__ = ["RecordedRun", "Run", "TrackingParams", "Trained", "fetch_state", "null_run", "run", "trained_on"]
