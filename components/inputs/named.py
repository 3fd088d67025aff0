"""What files and folders each stage's parameters name: fields of type :data:`components.input_paths.InputPath`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from components.benchmark.params import BenchmarkStageParams
from components.crawl.fetch_images import NamedImages
from components.crawl.spider import CrawlParams
from components.curate.params import CurateParams
from components.dedup.params import DedupParams
from components.distill.method import DistillParams
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile
from components.input_paths import input_paths
from components.params import Strict, load_params
from components.pipeline import PipelineParams
from components.training.params import TrainingParams


def named_inputs(params: Path, pipeline: PipelineParams) -> dict[str, dict[str, str]]:
    """Stage -> "file: key" -> path. ``params`` is the folder of the parameter files.

    A file that does not load names nothing here: its stage says what is wrong with it.
    """
    benchmarks = params / "benchmarks.yaml"
    found = {
        "crawl": _of(params / "crawl.yaml", CrawlParams),
        "curate": _of(params / "curate.yaml", CurateParams),
        "dedup": _of(params / "dedup.yaml", DedupParams) | _of(benchmarks, BenchmarksFile),
        "benchmark": _of(params / "benchmark.yaml", BenchmarkStageParams) | _of(benchmarks, BenchmarksFile),
    }
    if pipeline.source.endswith((".yaml", ".yml")):
        found["crawl"] |= _of(Path(pipeline.source), NamedImages)
    families: tuple[tuple[str, type[TrainingParams], list[str]], ...] = (
        ("pretrain", TrainingParams, pipeline.pretrain),
        ("continue", TrainingParams, list(pipeline.continued)),
        ("distill", DistillParams, list(pipeline.distill)),
    )
    for family, model, names in families:
        for name in names:
            path = params / family / f"{name}.yaml"
            found[f"{family}-{name}"] = _of(path, model) | dict(_probed(path, model, benchmarks))
    return found


def _of(path: Path, model: type[Strict]) -> dict[str, str]:
    try:
        return {f"{path}: {key}": value for key, value in input_paths(load_params(path, model))}
    except VitrailError:
        return {}


def _probed(path: Path, model: type[TrainingParams], benchmarks: Path) -> Iterator[tuple[str, str]]:
    """What the benchmark names that probes during training use."""
    try:
        probe = load_params(path, model).probe
        known = load_params(benchmarks, BenchmarksFile).benchmarks
    except VitrailError:
        return
    for name in (probe.benchmark, getattr(probe.dense, "benchmark", None)):
        if name in known:
            for key, value in input_paths(known[name]):
                yield f"{benchmarks}: {name}.{key}", value
