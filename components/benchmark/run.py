"""The benchmark stage's command.

python -m components.benchmark run --params params/benchmark.yaml --benchmarks params/benchmarks.yaml \\
    --checkpoints data/pretrain data/distill --out data/benchmark --report reports/benchmark.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.command_name import prog
from components.params import load_params
from components.pipeline import with_stage


def main(argv: Sequence[str]) -> int:
    """Parse ``argv`` and run the stage."""
    parser = argparse.ArgumentParser(
        prog=prog("components.benchmark"), description="Compare checkpoints on labelled images."
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    run = stages.add_parser("run", help="kNN and linear probe of every checkpoint and baseline; PCA pictures")
    run.add_argument("--params", type=Path, required=True)
    run.add_argument("--benchmarks", type=Path, required=True)
    run.add_argument("--checkpoints", nargs="+", required=True, help="models, or folders of exported ones")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--report", type=Path, required=True)
    run.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))
    run.add_argument("--tracking", type=Path, default=Path("params/tracking.yaml"))
    run.add_argument("--curated", type=Path, help="image shards; with --manifest, the training images are looked at")
    run.add_argument("--manifest", type=Path, help="table of the training images")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="overlay a value of --params, or of its protocol",
    )
    choose = stages.add_parser("choose", help="compare ways to take features, on the training side alone")
    choose.add_argument("--params", type=Path, required=True)
    choose.add_argument("--benchmarks", type=Path, required=True)
    choose.add_argument("--checkpoints", nargs="+", required=True)
    choose.add_argument("--image-sizes", type=int, nargs="+", required=True, metavar="PX")
    choose.add_argument("--crops", type=float, nargs="+", default=[1.0])
    published = stages.add_parser("published", help="what released models reached, with source and protocol")
    published.add_argument("--params-folder", type=Path, default=Path("params"))
    _add_compare(stages)
    oxford = stages.add_parser("revisited", help="revisited Oxford or Paris: easy, medium, hard")
    oxford.add_argument("--gnd", type=Path, required=True, help="the official ground truth, JSON or pickle")
    oxford.add_argument("--images", type=Path, required=True, help="folder of its pictures")
    oxford.add_argument("--checkpoints", nargs="+", required=True, help="as of run")
    oxford.add_argument("--params", type=Path, default=Path("params/benchmark.yaml"))
    oxford.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of run")
    arguments = parser.parse_args(with_stage(argv))
    if arguments.stage == "revisited":
        return _revisited(arguments)
    if arguments.stage == "compare":
        from components.benchmark.compare_command import compare

        return compare(arguments)
    if arguments.stage == "published":
        from components.benchmark.published import load_published, published_table

        print(published_table(load_published(arguments.params_folder)), end="")
        return 0
    if arguments.stage == "choose":
        return _choose(arguments)

    from components.benchmark.compare_command import measure

    print(measure(arguments, arguments.checkpoints, arguments.report))
    return 0


def _add_compare(stages: Any) -> None:
    """The options of ``compare``."""
    compare = stages.add_parser("compare", help="checkpoints side by side, with paired tests and a gate")
    compare.add_argument("sources", nargs="+", help="folders that `run` wrote, or models, which are measured first")
    compare.add_argument("--html", type=Path, help="write one page")
    compare.add_argument("--gate", type=Path, help="what checkpoints must reach; fails with the rows that fall short")
    compare.add_argument("--only", help="the gate asks this checkpoint alone, by its name in the table")
    compare.add_argument("--params", type=Path, default=Path("params/benchmark.yaml"))
    compare.add_argument(
        "--benchmarks", type=Path, default=Path("params/benchmarks.yaml"), help="images of --html, too"
    )
    compare.add_argument("--out", type=Path, default=Path("data/compare"), help="what is measured of models")
    compare.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))
    compare.add_argument("--tracking", type=Path, default=Path("params/tracking.yaml"))
    compare.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of run")
    compare.set_defaults(curated=None, manifest=None)


def _revisited(arguments: argparse.Namespace) -> int:
    from components.benchmark import oxford, stage
    from components.benchmark.contenders import gather
    from components.benchmark.params import BenchmarkStageParams
    from components.benchmark.protocol import load_protocol, split_overrides
    from components.evaluation.revisited import load_ground_truth

    of_protocol, others = split_overrides(arguments.set)
    params = load_params(arguments.params, BenchmarkStageParams, others)
    protocol = load_protocol(arguments.params.parent, params.protocol, of_protocol)
    truth, features = load_ground_truth(arguments.gnd), protocol.params.features
    contenders = gather(arguments.checkpoints, features, params.baselines, stage.device_of(params.device))
    found = oxford.revisited(contenders, truth, arguments.images, features.batch_size)
    print(oxford.table(found, protocol.label))
    return 0


def _choose(arguments: argparse.Namespace) -> int:
    from components.benchmark import choose, stage
    from components.benchmark.params import BenchmarkStageParams
    from components.benchmark.protocol import load_protocol
    from components.evaluation.benchmarks import BenchmarksFile, load_benchmark

    params = load_params(arguments.params, BenchmarkStageParams)
    protocol = load_protocol(arguments.params.parent, params.protocol).params
    for name, spec in load_params(arguments.benchmarks, BenchmarksFile).scored.items():
        found = choose.choose(
            load_benchmark(name, spec),
            arguments.checkpoints,
            choose.Inputs(arguments.image_sizes, arguments.crops),
            protocol.features,
            protocol.knn,
            stage.device_of(params.device),
        )
        print(choose.table(found))
    return 0
