"""The ``probe:`` section of a training preset: what ``evaluation/probing/online.py`` scores and shows on the way."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from components.input_paths import InputPath
from components.params import NEUTRAL, Cost, Name, Seed, Share, Strict
from components.training.guard import GuardParams


class LinearProbeParams(Strict):
    """Logistic regression on standardised features; its strength is chosen on the side that is fitted."""

    costs: tuple[Cost, ...] = Field((1e-3, 1e-2, 1e-1), min_length=1)  # inverse L2 strengths to choose from
    folds: int = Field(3, ge=2, le=1000)  # of cross-validation
    max_iterations: int = Field(100, ge=1, le=1_000_000)  # of L-BFGS


class DenseParams(Strict):
    """What every dense probe has."""

    image_size: int | None = Field(None, ge=16, le=8192)  # px of the square; null: augment.global_size
    train: int = Field(200, ge=2, le=1_000_000)  # pictures that the classifier is fitted on
    held_out: int = Field(100, ge=1, le=1_000_000)  # pictures that are scored
    patches: int = Field(6000, ge=10, le=1_000_000)  # labelled patches fitted at most, as many of each picture
    costs: tuple[Cost, ...] = Field((1e-2, 1.0), min_length=1)  # inverse L2 strengths to choose from
    folds: int = Field(2, ge=2, le=1000)  # of cross-validation, whole pictures
    max_iterations: int = Field(100, ge=1, le=1_000_000)  # of L-BFGS


class DenseMosaicParams(DenseParams):
    """Mosaics of four labelled images of ``probe.benchmark``: each pixel has the label of the image it comes from."""

    kind: Literal["mosaic"]
    task: str  # label set of the benchmark


class DenseFolderParams(DenseParams):
    """Images and their label masks, PNGs of equal stem whose pixels are class numbers."""

    kind: Literal["folder"]
    images: InputPath  # folder
    masks: InputPath  # folder
    name: Name = "segmentation"  # in the metrics' names
    ignore: int = Field(255, ge=0, le=65_535)  # mask value without a label


class DenseParquetParams(DenseParams):
    """A Parquet file with an encoded image and an encoded mask a row."""

    kind: Literal["parquet"]
    path: InputPath
    image: str = "image"  # columns
    mask: str = "mask"
    name: Name = "segmentation"
    ignore: int = Field(255, ge=0, le=65_535)


class DenseNamedParams(DenseParams):
    """A set of masks of ``params/benchmarks.yaml`` (CamVid, ADE20K, your own): its training side alone is read."""

    kind: Literal["named"]
    benchmark: str  # its name there


DenseProbeParams = Annotated[
    DenseMosaicParams | DenseNamedParams | DenseFolderParams | DenseParquetParams, Field(discriminator="kind")
]


class ProbeParams(Strict):
    """Scores during the run, on training-side images of a benchmark only: its test split is never read."""

    effect: ClassVar = NEUTRAL
    OFF: ClassVar = {"benchmark": None}

    benchmark: str | None = None  # a name in params/benchmarks.yaml; null: no kNN, no linear probe, no mosaics
    at: tuple[Share, ...] = (0.25, 0.5, 0.75, 1.0)  # shares of the run; the untrained network is scored before it
    seed: Seed = 0  # of the sample; independent of the run's, so that runs can be compared
    bank: int = Field(
        1000, ge=1, le=10**12
    )  # labelled images that neighbours are sought among and the linear probe is fitted on
    held_out: int = Field(400, ge=1, le=1_000_000)  # labelled images that are scored
    neighbours: int = Field(20, ge=1, le=1_000_000)
    linear: LinearProbeParams | None = LinearProbeParams()  # null: none
    dense: DenseProbeParams | None = None  # null: none
    raw_side: int = Field(
        32, ge=4, le=8192
    )  # px of the pictures whose pixels are the features of the reference "raw pixels"
    guard: GuardParams = GuardParams()  # what happens when kNN falls below its value before the first step
    best_by: Literal["knn", "linear", "dense"] = "knn"  # the checkpoint with the best mean of these scores is tagged
    pictures: int = Field(6, ge=0, le=1000)  # images whose crops, masks and patch features are shown
    picture_size: int | None = Field(
        None, ge=16, le=8192
    )  # px of the squares of patch features; null: augment.global_size

    @property
    def scored(self) -> bool:
        """Whether there is anything to score by."""
        return self.benchmark is not None or (self.dense is not None and self.dense.kind != "mosaic")

    def steps(self, iterations: int) -> set[int]:
        """The steps after which the averaged network is looked at."""
        if not self.scored and not self.pictures:
            return set()
        return {max(1, round(share * iterations)) for share in self.at}
