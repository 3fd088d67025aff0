"""Questions and take-downs about single images; and the state that a run came from.

python -m components.provenance trace http://photos.demo.test/a.jpg
python -m components.provenance forget --domain example.org --dry-run
python -m components.provenance reproduce RUN --out FOLDER
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import ArgumentCollection, Group, Parameter

from components.command_line import Many, Options, application, as_options, commands_of
from components.params import load_params
from components.storage import StorageParams

app = application(
    "provenance", "Trace an image, take images down, or bring back what a run came from.", "components.provenance"
)
main = commands_of(app)


def _one(given: ArgumentCollection) -> None:
    if sum(argument.has_tokens for argument in given) != 1:
        raise ValueError(f"give one of {', '.join(argument.name for argument in given)}")


_Named = Annotated[str, Parameter(group=Group("Images, by one of these", validator=_one))]


@as_options
class PlacesOptions:
    """Options of both commands: where images may be held."""

    curated: Path = Path("data/curate")
    """Folder that the curate stage wrote."""
    dedup: Path = Path("data/dedup")
    """Folder that the dedup stage wrote."""
    look: Many[Path] = (Path("data"), Path("runs"))
    """Folders with manifests and exported models."""
    block: Path = Path("params/policy/forgotten.txt")
    """The block list."""
    storage: Path = Path("params/storage.yaml")
    """Where image shards lie."""


_PLACES = PlacesOptions()


@app.command
def trace(image: str, /, *, options: Options[PlacesOptions] = _PLACES) -> None:
    """Tell an image's whole story: where it came from, and which models saw it.

    Args:
        image: Key (20 hex digits), address, or SHA-256 (64 hex digits).
    """
    from components.provenance.trace import trace as story

    storage = load_params(options.storage, StorageParams)
    print(story(image, options.curated, options.dedup, options.look, storage, [options.block]))


@as_options
class ForgetOptions(PlacesOptions):
    """Options of ``forget``. One of ``--domain``, ``--url`` and ``--key`` names the images."""

    domain: _Named = ""
    """All images of a domain and below it, and all that its pages name."""
    url: _Named = ""
    """One image by its address."""
    key: _Named = ""
    """One image by its key."""
    copies: Literal["none", "curate", "dedup"] = "curate"
    """Take down with it: nothing, its exact and near duplicates, or its copy-graph component, too."""
    dry_run: bool = False
    """List, and change nothing."""
    report: Path | None = None
    """JSON file for all that was found and done."""
    tracking: Path = Path("params/tracking.yaml")
    """How runs are recorded in MLflow."""


_FORGET = ForgetOptions()


@app.command
def forget(*, options: Options[ForgetOptions] = _FORGET) -> None:
    """Take images down, and list the models that saw them."""
    from components.provenance import receipt as receipts
    from components.provenance import take_down
    from components.tracking import TrackingParams

    storage = load_params(options.storage, StorageParams)
    wanted = take_down.TakeDownRequest(options.domain, options.url, options.key)
    outputs = take_down.Outputs(options.curated, options.dedup, options.look, options.block)
    tracking = load_params(options.tracking, TrackingParams)
    receipt = take_down.forget(wanted, outputs, options.copies, storage, tracking, options.dry_run)
    if options.report is not None:
        receipts.save(receipt, options.report)
    print(receipts.told(receipt, options.curated, options.block, options.dry_run))


@as_options
class ReproduceOptions:
    """Options of ``reproduce``."""

    out: Path
    """The new folder."""
    run: bool = False
    """Run its stage there, too: DVC's run cache gives the result, if it has it."""
    tracking: Path = Path("params/tracking.yaml")
    """How runs are recorded in MLflow."""


@app.command
def reproduce(of: str, /, *, options: Options[ReproduceOptions]) -> None:
    """Bring back exactly the code, parameters and data that a run of MLflow came from.

    Args:
        of: MLflow's id of the run, its key, or the id of a model that it made.
    """
    from components.provenance.reproduce import reproduce as bring_back
    from components.provenance.reproduce import told

    origin = bring_back(of, options.out, Path.cwd(), options.tracking, options.run)
    print(told(origin, options.out, options.run))
