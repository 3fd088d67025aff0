"""The crawl and curate stages' commands.

python -m components.curate crawl --params params/crawl.yaml --source params/site/demo.yaml --out data/crawl
python -m components.curate run --params params/curate.yaml --crawl data/crawl --out data/curate \\
    --report reports/curate.json
python -m components.curate trace http://photos.demo.test/a.jpg
python -m components.curate forget --domain example.org --dry-run
python -m components.curate plan --warcs 90000 --cores 640
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

    trace = stages.add_parser("trace", help="an image's whole story, by key, address or SHA-256")
    trace.add_argument("image", help="key (20 hex digits), address, or SHA-256 (64 hex digits)")
    forget = stages.add_parser("forget", help="take images down, and list who held them")
    named = forget.add_mutually_exclusive_group(required=True)
    named.add_argument("--domain", default="", help="all images of a domain and below it, and all that its pages name")
    named.add_argument("--url", default="", help="one image by its address")
    named.add_argument("--key", default="", help="one image by its key")
    with_it = "take down with it: nothing, its exact and near duplicates (default), or its copy-graph component, too"
    forget.add_argument("--copies", choices=["none", "curate", "dedup"], default="curate", help=with_it)
    forget.add_argument("--dry-run", action="store_true", help="list, and change nothing")
    forget.add_argument("--report", type=Path, help="a JSON file for all that was found and done")
    forget.add_argument("--tracking", type=Path, default=Path("params/tracking.yaml"))
    plan = stages.add_parser("plan", help="hosts, time, bytes and cores for a number of WARC files")
    plan.add_argument("--warcs", type=float, required=True, help="such as 90000, a month of Common Crawl")
    plan.add_argument("--params", type=Path, default=Path("params/crawl.yaml"))
    plan.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overlay a value of --params")
    plan.add_argument("--rates", type=Path, default=Path("params/rates/curate.yaml"), help="rates and averages")
    plan.add_argument("--cores", type=int, help="to plan for (default: this machine's)")
    plan.add_argument("--megabits", type=float, help="a second, of the line to the web")
    for command in (trace, forget):
        command.add_argument("--curated", type=Path, default=Path("data/curate"))
        command.add_argument("--dedup", type=Path, default=Path("data/dedup"))
        command.add_argument("--look", type=Path, nargs="*", default=[Path("data"), Path("runs")],
                             help="folders with manifests and exported models (default: data runs)")  # fmt: skip
        command.add_argument("--block", type=Path, default=Path("params/policy/forgotten.txt"), help="the block list")
        command.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))

    arguments = parser.parse_args(argv)
    if arguments.stage == "plan":
        from components.curate import plan as planning
        from components.curate.crawl import CrawlParams

        polite = load_params(arguments.params, CrawlParams, arguments.set)
        rates = planning.load_rates(arguments.rates)
        print(planning.plan(arguments.warcs, polite, rates, arguments.cores, arguments.megabits))
        return 0
    storage = load_params(arguments.storage, StorageParams)
    if arguments.stage == "trace":
        from components.curate.trace import trace as story

        look = tuple(arguments.look)
        print(story(arguments.image, arguments.curated, arguments.dedup, look, storage, [arguments.block]))
        return 0
    if arguments.stage == "forget":
        _forget(arguments, storage)
        return 0
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


def _forget(arguments: argparse.Namespace, storage: StorageParams) -> None:
    from components.curate import forget
    from components.tracking import TrackingParams

    wanted = forget.Wanted(arguments.domain, arguments.url, arguments.key)
    outputs = forget.Outputs(arguments.curated, arguments.dedup, tuple(arguments.look), arguments.block)
    tracking = load_params(arguments.tracking, TrackingParams)
    receipt = forget.forget(wanted, outputs, arguments.copies, storage, tracking, arguments.dry_run)
    if arguments.report is not None:
        forget.save(receipt, arguments.report)
    print(forget.told(receipt, outputs, arguments.dry_run))
