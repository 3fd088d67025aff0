"""Questions and take-downs about single images.

python -m components.provenance trace http://photos.demo.test/a.jpg
python -m components.provenance forget --domain example.org --dry-run
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from components.command_name import prog
from components.params import load_params
from components.storage import StorageParams


def main(argv: Sequence[str]) -> int:
    """Parse ``argv`` and run the command it names."""
    parser = argparse.ArgumentParser(
        prog=prog("components.provenance"), description="Trace an image, or take images down."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    trace = commands.add_parser("trace", help="an image's whole story, by key, address or SHA-256")
    trace.add_argument("image", help="key (20 hex digits), address, or SHA-256 (64 hex digits)")
    forget = commands.add_parser("forget", help="take images down, and list who held them")
    named = forget.add_mutually_exclusive_group(required=True)
    named.add_argument("--domain", default="", help="all images of a domain and below it, and all that its pages name")
    named.add_argument("--url", default="", help="one image by its address")
    named.add_argument("--key", default="", help="one image by its key")
    with_it = "take down with it: nothing, its exact and near duplicates (default), or its copy-graph component, too"
    forget.add_argument("--copies", choices=["none", "curate", "dedup"], default="curate", help=with_it)
    forget.add_argument("--dry-run", action="store_true", help="list, and change nothing")
    forget.add_argument("--report", type=Path, help="a JSON file for all that was found and done")
    forget.add_argument("--tracking", type=Path, default=Path("params/tracking.yaml"))
    for command in (trace, forget):
        command.add_argument("--curated", type=Path, default=Path("data/curate"))
        command.add_argument("--dedup", type=Path, default=Path("data/dedup"))
        command.add_argument("--look", type=Path, nargs="*", default=[Path("data"), Path("runs")],
                             help="folders with manifests and exported models (default: data runs)")  # fmt: skip
        command.add_argument("--block", type=Path, default=Path("params/policy/forgotten.txt"), help="the block list")
        command.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))
    arguments = parser.parse_args(argv)
    storage = load_params(arguments.storage, StorageParams)
    if arguments.command == "trace":
        from components.provenance.trace import trace as story

        look = tuple(arguments.look)
        print(story(arguments.image, arguments.curated, arguments.dedup, look, storage, [arguments.block]))
    else:
        _forget(arguments, storage)
    return 0


def _forget(arguments: argparse.Namespace, storage: StorageParams) -> None:
    from components.provenance import receipt as receipts
    from components.provenance import take_down
    from components.tracking import TrackingParams

    wanted = take_down.Wanted(arguments.domain, arguments.url, arguments.key)
    outputs = take_down.Outputs(arguments.curated, arguments.dedup, tuple(arguments.look), arguments.block)
    tracking = load_params(arguments.tracking, TrackingParams)
    receipt = take_down.forget(wanted, outputs, arguments.copies, storage, tracking, arguments.dry_run)
    if arguments.report is not None:
        receipts.save(receipt, arguments.report)
    print(receipts.told(receipt, arguments.curated, arguments.block, arguments.dry_run))
