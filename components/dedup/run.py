"""The dedup stage's commands.

python -m components.dedup run --params params/dedup.yaml --benchmarks params/benchmarks.yaml \\
    --curated data/curate --out data/dedup --report reports/dedup.json
python -m components.dedup search photo.jpg --curated data/curate --dedup data/dedup
python -m components.dedup review --out reports/dedup-review.html --threshold-sweep 0.5,0.6,0.7
python -m components.dedup whiten --params params/dedup_lvd.yaml --curated data/background --out whitening.safetensors
python -m components.dedup train --params params/sscd/small.yaml --curated data/curate --out descriptor.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from components.command_line import ExecutorOptions, Options, ParamsOptions, application, as_options, commands_of
from components.errors import VitrailError
from components.params import load_params
from components.storage import StorageParams

app = application("dedup", "Remove copies and held-out images, and choose the training images.", "components.dedup")
main = commands_of(app)


@as_options
class StoreOptions:
    """Options of every command."""

    storage: Path = Path("params/storage.yaml")
    """Where image shards lie."""

    def store(self) -> StorageParams:
        """What ``--storage`` names."""
        return load_params(self.storage, StorageParams)


@as_options
class FoldersOptions(StoreOptions):
    """Options of a command that reads what the stages wrote."""

    curated: Path = Path("data/curate")
    """Folder that the curate stage wrote."""
    dedup: Path = Path("data/dedup")
    """Folder that the dedup stage wrote."""


_FOLDERS = FoldersOptions()


@as_options
class RunOptions(ExecutorOptions, StoreOptions, ParamsOptions):
    """Options of ``run``."""

    benchmarks: Path
    """Parameter file of the labelled images, which are kept out of training."""
    curated: Path
    """Folder that the curate stage wrote."""
    out: Path
    """Folder for manifest, decisions and descriptors."""
    report: Path
    """JSON file for the run's figures."""
    tracking: Path = Path("params/tracking.yaml")
    """How runs are recorded in MLflow."""


@app.command
def run(*, options: Options[RunOptions]) -> None:
    """Describe images, find copies, remove held-out images, retrieve; write manifest and decisions."""
    from components.context import StageContext
    from components.dedup import stage
    from components.dedup.params import DedupParams
    from components.evaluation.sets.benchmarks import BenchmarksFile
    from components.tracking import TrackingParams

    params = load_params(options.params, DedupParams, [*options.set, *options.overrides()])
    storage = options.store()
    inputs = stage.DedupInputs(options.curated, load_params(options.benchmarks, BenchmarksFile))
    context = StageContext(storage, load_params(options.tracking, TrackingParams), options.report)
    report = stage.run(params, inputs, options.out, context)
    seldom = report["seldom_found"]
    said = seldom if isinstance(seldom, str) else ", ".join(f"{edit} ({share})" for edit, share in seldom.items())
    print(f"dedup: copies that this descriptor seldom finds: {said or 'none of those measured'}")
    reasons = ", ".join(f"{reason} {count}" for reason, count in report["reasons"].items())
    print(f"dedup: {report['images']} images, {report['selected']} selected ({reasons}) -> {options.out}")


@app.command
def search(
    image: Path, /, *, k: Annotated[int, Parameter(name="-k")] = 10, options: Options[FoldersOptions] = _FOLDERS
) -> None:
    """Find the nearest images of the pool to a picture.

    Args:
        image: The picture.
        k: How many images.
    """
    from components.dedup.search import search as nearest

    print(nearest(image, options.curated, options.dedup, k, options.store()))


def _cosines(_: object, tokens: object) -> tuple[float, ...]:
    """Cosines of a comma-separated list."""
    text = tokens[0].value  # type: ignore[index]  # cyclopts' tokens; the option takes one
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r}: expected cosines such as 0.5,0.6,0.7") from None
    if not all(-1 <= value <= 1 for value in found):
        raise ValueError(f"{text!r}: cosines lie between -1 and 1")
    return found


Cosines = Annotated[tuple[float, ...] | None, Parameter(converter=_cosines, n_tokens=1, metavar="COSINES")]


@as_options
class ReviewOptions(FoldersOptions):
    """Options of ``review``."""

    benchmarks: Path = Path("params/benchmarks.yaml")
    """Parameter file of the labelled images."""
    out: Path = Path("reports/dedup-review.html")
    """The page; a .csv file is written beside it."""
    threshold_sweep: Cosines = None
    """Thresholds, separated by commas. Without it: every twentieth."""
    groups: int = 24
    """Groups shown of each kind."""


_REVIEW = ReviewOptions()


@app.command
def review(*, options: Options[ReviewOptions] = _REVIEW) -> None:
    """Show what each threshold would drop, with pictures, as one HTML file."""
    from components.dedup.revisit import ReviewPage, revisit
    from components.evaluation.sets.benchmarks import BenchmarksFile

    sweep = None if options.threshold_sweep is None else list(options.threshold_sweep)
    again = ReviewPage(options.out, sweep, options.groups)
    benchmarks = load_params(options.benchmarks, BenchmarksFile)
    print(revisit(options.curated, options.dedup, benchmarks, options.store(), again))


@as_options
class TrainOptions(StoreOptions, ParamsOptions):
    """Options of ``train``."""

    curated: Path
    """Folder that the curate stage wrote."""
    out: Path
    """File for the weights."""
    workers: int = 0
    """Processes that read images; 0: this one."""
    chunk: int = 512
    """Images in a unit of work."""


@app.command
def train(*, options: Options[TrainOptions]) -> None:
    """Train a copy descriptor of SSCD's kind, for descriptor.weights of any pool."""
    from components.dedup.pool.fit import train as fit
    from components.descriptors.kinds import TrainedParams

    trained = load_params(options.params, TrainedParams, options.set)
    count = fit(trained, options.curated, options.out, options.store(), options.workers, options.chunk)
    print(f"dedup: a descriptor of {count} images -> {options.out}")


@as_options
class WhitenOptions(StoreOptions, ParamsOptions):
    """Options of ``whiten``. ``--params`` is the stage's file, with a descriptor of kind sscd."""

    curated: Path
    """The background set."""
    out: Path
    """File for the whitening."""
    dim: int | None = None
    """Directions to keep (default: all)."""
    images: int = 20_000
    """Images of the background set, at most."""
    floor: float = 0.0
    """Added to each spread, relative to the largest."""


@app.command
def whiten(*, options: Options[WhitenOptions]) -> None:
    """Fit a PCA whitening, for descriptor.whitening of a published network."""
    from components.dedup.params import DedupParams
    from components.dedup.pool.fit import WhiteningChoice
    from components.dedup.pool.fit import whiten as fit_background
    from components.descriptors.sscd import SscdParams

    network = load_params(options.params, DedupParams, options.set).descriptor
    if not isinstance(network, SscdParams):
        raise VitrailError(f"{options.params}: descriptor.kind is {network.kind}; whitening is for sscd")
    how = WhiteningChoice(options.dim, options.images, options.floor)
    digest = fit_background(network, options.curated, options.out, options.store(), how)
    print(f"descriptor.whitening: {{path: {options.out}, sha256: {digest}}}")
