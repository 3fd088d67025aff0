"""The crawl stage's command.

python -m components.crawl run --params params/crawl.yaml --source params/site/demo.yaml --out data/crawl
python -m components.crawl retry --reasons timed-out,unreachable --params params/crawl.yaml --out data/crawl
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from components.command_name import prog
from components.params import load_params
from components.pipeline import load_pipeline
from components.storage import StorageParams
from components.web.forms import plain


def main(argv: Sequence[str]) -> int:
    """Parse ``argv`` and run the stage."""
    parser = argparse.ArgumentParser(
        prog=prog("components.crawl"), description="From a source to WARC files or a list."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="crawl a site, or register WARC files or images that are there")
    retry = commands.add_parser("retry", help="ask again only for what a finished crawl could not get")
    retry.add_argument(
        "--reasons",
        default="timed-out,unreachable",
        help="why they were not got, separated by commas, as in the index; default: timed-out,unreachable",
    )
    for command in (run, retry):
        command.add_argument("--params", type=Path, required=True)
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="other manners")
        command.add_argument("--source", help=f"{plain()} (default: `source` in params/pipeline.yaml)")
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))
    arguments = parser.parse_args(argv)
    from components.context import StageContext
    from components.crawl import stage
    from components.crawl.spider import CrawlParams
    from components.web.listing import shown

    params = load_params(arguments.params, CrawlParams, arguments.set)
    context = StageContext(load_params(arguments.storage, StorageParams), tracking=None, report=None)
    source = arguments.source or load_pipeline().source
    if arguments.command == "retry":
        from components.crawl import retry as again

        reasons = [reason.strip() for reason in arguments.reasons.split(",") if reason.strip()]
        counts = again.run(reasons, params, source, arguments.out, context)
        print(f"crawl retry: {arguments.out}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
        if counts["asked"]:
            print("next: dvc commit -f crawl makes this the stage's version; dvc repro curates it")
        return 0
    counts = stage.run(params, stage.CrawlInputs(source), arguments.out, context)
    print(f"crawl: {shown(source)} -> {arguments.out}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
    return 0
