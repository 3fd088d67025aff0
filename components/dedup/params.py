"""``params/dedup.yaml``: the dedup stage's parameters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.dedup.balance import BalanceParams
from components.dedup.calibrate import CalibrationParams
from components.dedup.checks import CheckParams
from components.dedup.giants import GiantParams
from components.dedup.graph import Keep
from components.dedup.reference import RelativeParams
from components.dedup.retrieve import RetrievalParams
from components.descriptors.kinds import DescriptorParams
from components.descriptors.views import Views
from components.executor import ExecutorParams
from components.neighbours import NeighbourParams
from components.params import Strict
from components.tables.database import MemoryParams


class GraphParams(Strict):
    """The copy graph of the pool with itself."""

    k: int = Field(64, ge=1)  # neighbours an image; the paper's
    threshold: float | Literal["calibrated"] = "calibrated"  # cosine; the paper: 0.6 with SSCD
    edges_from: float = Field(0.5, ge=-1, lt=1)  # cosine over which edges are kept, for the threshold sweep
    keep: Keep = "quality"  # image of a component; ties: the smallest content hash. See keep.py
    giants: GiantParams | None = GiantParams()  # None: components are left as they are, however large
    largest_share: float = Field(0.1, gt=0, le=1)  # of the pool; a component still larger stops the stage: it chains
    largest_least: int = Field(100, ge=1)  # images; a component of no more never stops it, whatever its share
    labels_on_disk_from: int = Field(500_000_000, ge=1)  # images from which the components' table is a file
    part_rows: int = Field(1_000_000, ge=1)  # images, at least, a piece of the index and a part of the edges


class ViewsParams(Strict):
    """What is described of every image beside the image itself and its ``windows``."""

    flip: bool = True  # its mirror image, so that mirrored copies are found; false where mirrored is another thing


class DedupParams(Strict):
    """``params/dedup.yaml``."""

    descriptor: DescriptorParams
    # Crops of every image that are described beside it, (side kept, n) for n x n: what a cropped copy is found by
    windows: list[tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[int, Field(ge=1)]]] = []
    views: ViewsParams = ViewsParams()
    neighbours: NeighbourParams = NeighbourParams()
    calibration: CalibrationParams | None = None  # None: both thresholds must be numbers
    graph: GraphParams
    relative: RelativeParams
    retrieval: RetrievalParams | None = None  # None: all that survives is selected
    balance: BalanceParams | None = None  # without queries: a sample spread evenly; not beside `retrieval`
    executor: ExecutorParams = ExecutorParams(workers=0)
    chunk: int = Field(512, ge=1)  # images a unit of work
    checks: CheckParams = CheckParams()
    memory: MemoryParams = MemoryParams()  # of the joins that decisions and manifest are made by

    def described_views(self) -> Views:
        """The views of every image that are described."""
        return Views(tuple(self.windows), self.views.flip)
