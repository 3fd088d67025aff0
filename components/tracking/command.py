"""Send what runs recorded while MLflow was away.

python -m components.tracking sync
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from components.command_name import prog
from components.params import load_params
from components.tracking.delivery import Store
from components.tracking.params import TrackingParams
from components.tracking.sender import catch_up
from components.tracking.spool import left_behind
from components.tracking.store import probe, resolve


def main(argv: Sequence[str]) -> int:
    """Parse ``argv`` and send."""
    parser = argparse.ArgumentParser(prog=prog("components.tracking"), description="What MLflow has not got yet.")
    commands = parser.add_subparsers(dest="command", required=True)
    sync = commands.add_parser("sync", help="send what ended runs recorded while the store was away")
    sync.add_argument("--tracking", type=Path, default=Path("params/tracking.yaml"))
    arguments = parser.parse_args(argv)
    params = load_params(arguments.tracking, TrackingParams)
    uri = resolve(os.environ.get("MLFLOW_TRACKING_URI") or params.uri)
    sent = others = 0
    if left_behind(params.spool):
        probe(uri)
        sent, others = catch_up(params.spool, Store(uri, params.experiment), print)
    rest = len(left_behind(params.spool)) - others
    more = f"; {rest} are being recorded now" if rest else ""
    more += f"; {others} wait for another store than {uri}" if others else ""
    print(f"sync: {sent:,} records sent{more}")
    return 0
