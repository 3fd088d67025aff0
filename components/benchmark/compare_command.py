"""What ``run`` and ``compare`` do with their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from components.benchmark import stage
from components.benchmark.compare import divided, markdown, paired_tests, rows_of, test_rows
from components.benchmark.params import BenchmarkStageParams
from components.benchmark.protocol import load_protocol, split_overrides
from components.benchmark.published import load_published
from components.benchmark.results import Results, load_results
from components.context import StageContext
from components.errors import VitrailError
from components.evaluation.benchmarks import BenchmarksFile, load_benchmark
from components.evaluation.gate import GateParams, shortfalls
from components.evaluation.labelled_set import Benchmark
from components.params import load_params
from components.storage import StorageParams, atomic_file
from components.tracking import TrackingParams


def measure(arguments: argparse.Namespace, models: Sequence[str], report: Path | None) -> str:
    """Run the stage on ``models``; what it wrote lies in ``arguments.out``. Returns the table."""
    of_protocol, others = split_overrides(arguments.set)
    params = load_params(arguments.params, BenchmarkStageParams, others)
    protocol = load_protocol(arguments.params.parent, params.protocol, of_protocol)
    inputs = stage.BenchmarkInputs(
        models,
        load_params(arguments.benchmarks, BenchmarksFile),
        protocol,
        arguments.curated,
        arguments.manifest,
        load_published(arguments.params.parent),
    )
    tracking = load_params(arguments.tracking, TrackingParams)
    return stage.run(
        params, inputs, arguments.out, StageContext(load_params(arguments.storage, StorageParams), tracking, report)
    )


def compare(arguments: argparse.Namespace) -> int:
    """Compare folders of results and models; models are measured first.

    Raises:
        VitrailError: a source is neither, two cannot be compared, or the gate is not met.
    """
    folders, models = divided(arguments.sources)
    if models:
        measure(arguments, models, None)
        folders.append(arguments.out)
    found = load_results(folders)
    tests = paired_tests(found)
    print(markdown(rows_of(found)))
    print(markdown(test_rows(found, tests)))
    if arguments.html is not None:
        from components.benchmark.page import page

        text = page(found, tests, _shown(found, arguments.benchmarks))
        with atomic_file(arguments.html, "w") as file:
            file.write(text)
    if arguments.gate is not None:
        short = shortfalls(found.scores, load_params(arguments.gate, GateParams), arguments.only)
        if short:
            raise VitrailError(f"{arguments.gate}: " + "; ".join(short))
    return 0


def _shown(found: Results, file: Path) -> dict[str, Benchmark]:
    """The benchmarks whose images may be shown: those that are still what was measured."""
    if not file.is_file():
        return {}
    known = load_params(file, BenchmarksFile).scored
    loaded = [load_benchmark(name, known[name]) for name in found.digests if name in known]
    return {one.name: one for one in loaded if one.digest == found.digests[one.name]}
