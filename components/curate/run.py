"""The curate stage's command.

python -m components.curate run --params params/curate.yaml --crawl data/crawl --out data/curate \\
    --report reports/curate.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from components.executor import add_arguments, overlays
from components.params import load_params
from components.storage import StorageParams


def main(argv: Sequence[str]) -> int:
    """Parse ``argv`` and run the stage."""
    parser = argparse.ArgumentParser(prog="components.curate", description="From WARC files or images to shards.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="links, policy, decode, duplicates, NSFW, faces; shards and index")
    run.add_argument("--params", type=Path, required=True)
    run.add_argument("--crawl", type=Path, required=True)
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--report", type=Path, required=True)
    run.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))
    run.add_argument("--tracking", type=Path, default=Path("params/tracking.yaml"))
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overlay a value of --params")
    add_arguments(run)
    arguments = parser.parse_args(argv)
    from components.context import StageContext
    from components.curate import stage
    from components.curate.params import CurateParams
    from components.tracking import TrackingParams

    params = load_params(arguments.params, CurateParams, arguments.set + overlays(arguments))
    tracking = load_params(arguments.tracking, TrackingParams)
    context = StageContext(load_params(arguments.storage, StorageParams), tracking, arguments.report)
    report = stage.run(params, stage.CurateInputs(arguments.crawl), arguments.out, context)
    print(f"curate: {report['links']} links, {report['kept']} kept -> {arguments.out}")
    return 0
