"""The options of the benchmark stage's commands ``run`` and ``compare``."""

from __future__ import annotations

from pathlib import Path

from components.command_line import ExecutorOptions, Many, Overrides, as_options

PARAMS = Path("params/benchmark.yaml")


@as_options
class MeasureOptions(ExecutorOptions):
    """Options of both."""

    params: Path = PARAMS
    """Parameter file of the stage."""
    benchmarks: Path = Path("params/benchmarks.yaml")
    """Parameter file of the labelled images."""
    out: Path
    """Folder for what is measured."""
    storage: Path = Path("params/storage.yaml")
    """The store of s3:// models."""
    tracking: Path = Path("params/tracking.yaml")
    """How runs are recorded in MLflow."""
    set: Overrides = ()
    """Override a value of --params, or of its protocol."""


@as_options
class RunOptions(MeasureOptions):
    """Options of ``run``."""

    params: Path
    """Parameter file of the stage."""
    benchmarks: Path
    """Parameter file of the labelled images."""
    checkpoints: Many[str]
    """Models, or folders of exported ones."""
    report: Path
    """JSON file for the run's figures."""
    curated: Path | None = None
    """Image shards. With --manifest, the training images are looked at."""
    manifest: Path | None = None
    """Table of the training images."""


@as_options
class CompareOptions(MeasureOptions):
    """Options of ``compare``."""

    out: Path = Path("data/compare")
    """Folder for what is measured of models."""
    html: Path | None = None
    """Write one page, with pictures of the benchmarks."""
    gate: Path | None = None
    """What checkpoints must reach. The command fails with the rows that fall short."""
    only: str | None = None
    """The gate asks this checkpoint alone, by its name in the table."""
