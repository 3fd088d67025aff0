"""What a stage needs, before it runs.

python -m components.planning crawl --warcs 90000 --cores 640
python -m components.planning dedup --images 1.3e9 --set windows=[]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from components.params import load_params

_SET = "overlay a value of --params"


def main(argv: Sequence[str]) -> int:
    """Parse ``argv`` and print the plan it asks for."""
    parser = argparse.ArgumentParser(prog="components.planning", description="Hosts, hours, bytes and memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    crawl = commands.add_parser("crawl", help="hosts, time, bytes and cores for a number of WARC files")
    crawl.add_argument("--warcs", type=float, required=True, help="such as 90000, a month of Common Crawl")
    crawl.add_argument("--params", type=Path, default=Path("params/crawl.yaml"))
    crawl.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=_SET)
    crawl.add_argument("--rates", type=Path, default=Path("params/rates/curate.yaml"), help="rates and averages")
    crawl.add_argument("--cores", type=int, help="to plan for (default: this machine's)")
    crawl.add_argument("--megabits", type=float, help="a second, of the line to the web")
    dedup = commands.add_parser("dedup", help="index, memory, disk and hours for a number of images")
    dedup.add_argument("--images", type=float, required=True, help="such as 1.3e9")
    dedup.add_argument("--params", type=Path, default=Path("params/dedup.yaml"))
    dedup.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=_SET)
    dedup.add_argument("--dim", type=int, default=512, help="of a descriptor (default: 512, SSCD's)")
    dedup.add_argument("--cores", type=int, help="to plan for (default: this machine's)")
    dedup.add_argument("--images-per-second", type=float, help="described, all cores or GPUs together")
    dedup.add_argument("--held-out", type=float, default=1e6, help="images of all benchmarks (default: 1e6)")
    dedup.add_argument("--queries", type=float, default=1e6, help="images that retrieve (default: 1e6)")
    dedup.add_argument("--gpu-gigabytes", type=float, default=80, help="memory of one GPU (default: 80)")
    dedup.add_argument("--rates", type=Path, help="a JSON file of rates; written if missing, measured if left out")
    arguments = parser.parse_args(argv)
    print(_crawl(arguments) if arguments.command == "crawl" else _dedup(arguments))
    return 0


def _crawl(arguments: argparse.Namespace) -> str:
    from components.crawl.spider import CrawlParams
    from components.planning.crawl import load_rates, plan

    polite = load_params(arguments.params, CrawlParams, arguments.set)
    return plan(arguments.warcs, polite, load_rates(arguments.rates), arguments.cores, arguments.megabits)


def _dedup(arguments: argparse.Namespace) -> str:
    from components.dedup.params import DedupParams
    from components.planning.dedup import load_rates, plan

    return plan(
        arguments.images,
        arguments.dim,
        load_params(arguments.params, DedupParams, arguments.set),
        load_rates(arguments.rates),
        arguments.cores,
        arguments.images_per_second,
        arguments.held_out,
        arguments.queries,
        arguments.gpu_gigabytes,
    )
