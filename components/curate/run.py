"""The curate stage's command.

python -m components.curate run --params params/curate.yaml --crawl data/crawl --out data/curate \\
    --report reports/curate.json
"""

from __future__ import annotations

from pathlib import Path

from components.command_line import ExecutorOptions, Options, ParamsOptions, application, as_options, commands_of
from components.params import load_params
from components.storage import StorageParams

app = application("curate", "Filter, decode and shard images.", "components.curate")
main = commands_of(app)


@as_options
class RunOptions(ExecutorOptions, ParamsOptions):
    """Options of ``run``."""

    crawl: Path
    """Folder that the crawl stage wrote."""
    out: Path
    """Folder for index, audit and shards."""
    report: Path
    """JSON file for the run's figures."""
    storage: Path = Path("params/storage.yaml")
    """Where image shards lie."""
    tracking: Path = Path("params/tracking.yaml")
    """How runs are recorded in MLflow."""


@app.command
def run(*, options: Options[RunOptions]) -> None:
    """Find links, apply the policy, decode, drop duplicates and unsafe images, blur faces, write shards and index."""
    from components.context import StageContext
    from components.curate import stage
    from components.curate.params import CurateParams
    from components.tracking import TrackingParams

    params = load_params(options.params, CurateParams, [*options.set, *options.overrides()])
    tracking = load_params(options.tracking, TrackingParams)
    context = StageContext(load_params(options.storage, StorageParams), tracking, options.report)
    report = stage.run(params, stage.CurateInputs(options.crawl), options.out, context)
    print(f"curate: {report['links']} links, {report['kept']} kept -> {options.out}")
