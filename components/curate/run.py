"""The crawl and curate stages' commands.

python -m components.curate crawl --params params/crawl.yaml --source params/site/demo.yaml --out data/crawl
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
    """Parse ``argv`` and run the stage it names."""
    parser = argparse.ArgumentParser(
        prog="components.curate", description="From a site or its WARC files to image shards."
    )
    stages = parser.add_subparsers(dest="stage", required=True)

    crawl = stages.add_parser("crawl", help="crawl a site, or register WARC files or images that are there")
    crawl.add_argument("--params", type=Path, required=True)
    crawl.add_argument("--source", required=True, help="site.yaml, folder, WARC file, or s3://bucket/prefix")
    crawl.add_argument("--out", type=Path, required=True)
    crawl.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))

    run = stages.add_parser("run", help="links, policy, decode, duplicates, NSFW, faces; shards and index")
    run.add_argument("--params", type=Path, required=True)
    run.add_argument("--crawl", type=Path, required=True)
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--report", type=Path, required=True)
    run.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))
    run.add_argument("--tracking", type=Path, default=Path("params/tracking.yaml"))
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overlay a value of --params")
    add_arguments(run)

    arguments = parser.parse_args(argv)
    storage = load_params(arguments.storage, StorageParams)
    if arguments.stage == "crawl":
        from components.curate import crawl_stage

        counts = crawl_stage.run(arguments.params, arguments.source, arguments.out, storage)
        print(f"crawl: {arguments.source} -> {arguments.out}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
    else:
        from components.curate import stage

        params = load_params(arguments.params, stage.CurateParams, arguments.set + overlays(arguments))
        report = stage.run(params, arguments.crawl, arguments.out, arguments.report, storage, arguments.tracking)
        print(f"curate: {report['links']} links, {report['kept']} kept -> {arguments.out}")
    return 0
