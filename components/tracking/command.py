"""Send what runs recorded while MLflow was away.

python -m components.tracking sync
"""

from __future__ import annotations

import os
from pathlib import Path

from components.command_line import application, commands_of
from components.params import load_params
from components.tracking.delivery import MlflowStore
from components.tracking.params import TrackingParams
from components.tracking.sender import catch_up
from components.tracking.spool import left_behind
from components.tracking.store import probe, resolve

app = application("sync", "What MLflow has not got yet.", "components.tracking")
main = commands_of(app)


@app.command
def sync(*, tracking: Path = Path("params/tracking.yaml")) -> None:
    """Send what ended runs recorded while the store was away.

    Args:
        tracking: How runs are recorded in MLflow.
    """
    params = load_params(tracking, TrackingParams)
    uri = resolve(os.environ.get("MLFLOW_TRACKING_URI") or params.uri)
    sent = others = 0
    if left_behind(params.spool):
        probe(uri)
        sent, others = catch_up(params.spool, MlflowStore(uri, params.experiment), print)
    rest = len(left_behind(params.spool)) - others
    more = f"; {rest} are being recorded now" if rest else ""
    more += f"; {others} wait for another store than {uri}" if others else ""
    print(f"sync: {sent:,} records sent{more}")
