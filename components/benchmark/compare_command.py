"""What ``run`` and ``compare`` do with their options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.benchmark import stage
from components.benchmark.methods.label_efficiency import few_tables
from components.benchmark.methods.protocol import load_protocol, split_overrides
from components.benchmark.options import CompareOptions, MeasureOptions, RunOptions
from components.benchmark.pages.compare import divided, markdown, paired_tests, rows_of, test_rows
from components.benchmark.pages.published import load_published
from components.benchmark.pages.results import Results, load_results
from components.benchmark.params import BenchmarkStageParams
from components.context import StageContext
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile, load_benchmark
from components.evaluation.sets.labelled_set import Benchmark
from components.evaluation.statistics.gate import GateParams, shortfalls
from components.params import load_params
from components.storage import StorageParams, atomic_file
from components.tracking import TrackingParams


def measure(options: MeasureOptions, models: Sequence[str], report: Path | None) -> str:
    """Run the stage on ``models``; what it wrote lies in ``options.out``. Returns the table."""
    of_protocol, others = split_overrides(options.set)
    params = load_params(options.params, BenchmarkStageParams, [*others, *options.overrides()])
    protocol = load_protocol(options.params.parent, params.protocol, of_protocol)
    inputs = stage.BenchmarkInputs(
        models,
        load_params(options.benchmarks, BenchmarksFile),
        protocol,
        options.curated if isinstance(options, RunOptions) else None,
        options.manifest if isinstance(options, RunOptions) else None,
        load_published(options.params.parent),
    )
    tracking = load_params(options.tracking, TrackingParams)
    return stage.run(
        params, inputs, options.out, StageContext(load_params(options.storage, StorageParams), tracking, report)
    )


def compare(sources: Sequence[str], options: CompareOptions) -> None:
    """Compare folders of results and models; models are measured first.

    Raises:
        VitrailError: a source is neither, two cannot be compared, or the gate is not met.
    """
    folders, models = divided(sources)
    if models:
        measure(options, models, None)
        folders.append(options.out)
    found = load_results(folders)
    tests = paired_tests(found)
    print(markdown(rows_of(found)))
    print(markdown(test_rows(found, tests)))
    for (name, task), rows in few_tables(found.efficiency).items():
        print(f"{name} {task}: balanced accuracy with few labels\n\n{markdown(rows)}")
    if options.html is not None:
        from components.benchmark.pages.page import page

        text = page(found, tests, _shown(found, options.benchmarks))
        with atomic_file(options.html, "w") as file:
            file.write(text)
    if options.gate is not None:
        short = shortfalls(found.scores, load_params(options.gate, GateParams), options.only)
        if short:
            raise VitrailError(f"{options.gate}: " + "; ".join(short))


def _shown(found: Results, file: Path) -> dict[str, Benchmark]:
    """The benchmarks whose images may be shown: those that are still what was measured."""
    if not file.is_file():
        return {}
    known = load_params(file, BenchmarksFile).scored
    loaded = [load_benchmark(name, known[name]) for name in found.digests if name in known]
    return {one.name: one for one in loaded if one.digest == found.digests[one.name]}
