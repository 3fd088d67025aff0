"""The dedup stage's commands.

python -m components.dedup run --params params/dedup.yaml --benchmarks params/benchmarks.yaml \\
    --curated data/curate --out data/dedup --report reports/dedup.json
python -m components.dedup search photo.jpg --curated data/curate --dedup data/dedup
python -m components.dedup review --out reports/dedup-review.html --threshold-sweep 0.5,0.6,0.7
python -m components.dedup whiten --params params/dedup_lvd.yaml --curated data/background --out whitening.safetensors
python -m components.dedup train --params params/sscd/small.yaml --curated data/curate --out descriptor.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from components.command_name import prog
from components.errors import VitrailError
from components.executor import add_arguments, overlays
from components.params import load_params
from components.storage import StorageParams


def _thresholds(text: str) -> list[float]:
    """Cosines of a comma-separated list."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected cosines such as 0.5,0.6,0.7") from None
    if not all(-1 <= value <= 1 for value in found):
        raise argparse.ArgumentTypeError(f"{text!r}: cosines lie between -1 and 1")
    return found


def main(argv: Sequence[str]) -> int:
    """Parse ``argv`` and run the command it names."""
    parser = argparse.ArgumentParser(
        prog=prog("components.dedup"), description="From image shards to a training manifest."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="descriptors, copy graph, relative dedup, retrieval; manifest and decisions")
    run.add_argument("--params", type=Path, required=True)
    run.add_argument("--benchmarks", type=Path, required=True)
    run.add_argument("--curated", type=Path, required=True)
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--report", type=Path, required=True)
    run.add_argument("--tracking", type=Path, default=Path("params/tracking.yaml"))
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overlay a value of --params")
    add_arguments(run)
    search = commands.add_parser("search", help="the nearest images of the pool to a picture")
    search.add_argument("image", type=Path)
    search.add_argument("--curated", type=Path, default=Path("data/curate"))
    search.add_argument("--dedup", type=Path, default=Path("data/dedup"))
    search.add_argument("-k", type=int, default=10, help="how many (default: 10)")
    review = commands.add_parser("review", help="what each threshold would drop, and pictures, as one HTML file")
    review.add_argument("--curated", type=Path, default=Path("data/curate"))
    review.add_argument("--dedup", type=Path, default=Path("data/dedup"))
    review.add_argument("--benchmarks", type=Path, default=Path("params/benchmarks.yaml"))
    review.add_argument("--out", type=Path, default=Path("reports/dedup-review.html"), help="a .csv is put beside it")
    review.add_argument(
        "--threshold-sweep", type=_thresholds, metavar="COSINES", help="comma-separated; left out: every twentieth"
    )
    review.add_argument("--groups", type=int, default=24, help="groups shown of each kind (default: 24)")
    train = commands.add_parser("train", help="a copy descriptor of SSCD's kind, for descriptor.weights of any pool")
    train.add_argument("--params", type=Path, required=True)
    train.add_argument("--curated", type=Path, required=True)
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--workers", type=int, default=0, help="processes that read images; 0: this one")
    train.add_argument("--chunk", type=int, default=512, help="images a unit of work")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overlay a value of --params")
    whiten = commands.add_parser("whiten", help="PCA whitening for descriptor.whitening of a published network")
    whiten.add_argument("--params", type=Path, required=True, help="of the stage, with a descriptor of kind sscd")
    whiten.add_argument("--curated", type=Path, required=True, help="the background set")
    whiten.add_argument("--out", type=Path, required=True)
    whiten.add_argument("--dim", type=int, help="directions kept (default: all)")
    whiten.add_argument("--images", type=int, default=20_000, help="of the background, at most (default: 20000)")
    whiten.add_argument("--floor", type=float, default=0.0, help="added to each spread, relative to the largest")
    whiten.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overlay a value of --params")
    for command in (run, search, review, train, whiten):
        command.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))
    arguments = parser.parse_args(argv)
    storage = load_params(arguments.storage, StorageParams)
    if arguments.command == "search":
        from components.dedup.search import search as nearest

        print(nearest(arguments.image, arguments.curated, arguments.dedup, arguments.k, storage))
        return 0
    if arguments.command == "review":
        from components.dedup.revisit import Again, revisit
        from components.evaluation.benchmarks import BenchmarksFile

        print(
            revisit(
                arguments.curated,
                arguments.dedup,
                load_params(arguments.benchmarks, BenchmarksFile),
                storage,
                Again(arguments.out, arguments.threshold_sweep, arguments.groups),
            )
        )
        return 0
    if arguments.command == "train":
        from components.dedup.fit import train as fit
        from components.descriptors.kinds import TrainedParams

        trained = load_params(arguments.params, TrainedParams, arguments.set)
        count = fit(trained, arguments.curated, arguments.out, storage, arguments.workers, arguments.chunk)
        print(f"dedup: a descriptor of {count} images -> {arguments.out}")
        return 0
    from components.dedup import stage
    from components.dedup.params import DedupParams

    if arguments.command == "whiten":
        from components.dedup.fit import Whitening
        from components.dedup.fit import whiten as fit_background
        from components.descriptors.sscd import SscdParams

        network = load_params(arguments.params, DedupParams, arguments.set).descriptor
        if not isinstance(network, SscdParams):
            raise VitrailError(f"{arguments.params}: descriptor.kind is {network.kind}; whitening is for sscd")
        how = Whitening(arguments.dim, arguments.images, arguments.floor)
        digest = fit_background(network, arguments.curated, arguments.out, storage, how)
        print(f"descriptor.whitening: {{path: {arguments.out}, sha256: {digest}}}")
        return 0
    from components.context import StageContext
    from components.evaluation.benchmarks import BenchmarksFile
    from components.tracking import TrackingParams

    params = load_params(arguments.params, DedupParams, arguments.set + overlays(arguments))
    inputs = stage.DedupInputs(arguments.curated, load_params(arguments.benchmarks, BenchmarksFile))
    context = StageContext(storage, load_params(arguments.tracking, TrackingParams), arguments.report)
    report = stage.run(params, inputs, arguments.out, context)
    seldom = report["seldom_found"]
    said = seldom if isinstance(seldom, str) else ", ".join(f"{edit} ({share})" for edit, share in seldom.items())
    print(f"dedup: copies that this descriptor seldom finds: {said or 'none of those measured'}")
    reasons = ", ".join(f"{reason} {count}" for reason, count in report["reasons"].items())
    print(f"dedup: {report['images']} images, {report['selected']} selected ({reasons}) -> {arguments.out}")
    return 0
