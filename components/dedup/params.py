"""``params/dedup.yaml``: the dedup stage's parameters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.dedup.checks import CheckParams
from components.dedup.copy_graph.automatic import AutoParams
from components.dedup.copy_graph.calibrate import CalibrationParams
from components.dedup.copy_graph.giants import GiantParams
from components.dedup.copy_graph.graph import Keep
from components.dedup.decisions.balance import BalanceParams
from components.dedup.decisions.reference import RelativeParams
from components.dedup.decisions.retrieve import RetrievalParams
from components.descriptors.kinds import DescriptorParams
from components.descriptors.views import Views
from components.executor import ExecutorParams
from components.neighbours import NeighbourParams
from components.params import Cosine, Share, Strict
from components.tables.database import MemoryParams


class GraphParams(Strict):
    """The copy graph of the pool with itself."""

    k: int = Field(64, ge=1, le=1_000_000)  # neighbours an image; the paper's
    # Cosine; the paper: 0.6 with SSCD. auto: by the pool itself (automatic.py); calibrated: by labels (calibrate.py)
    threshold: Cosine | Literal["auto", "calibrated"] = "auto"
    edges_from: float = Field(0.5, ge=-1, lt=1)  # cosine over which edges are kept, for the threshold sweep
    keep: Keep = "quality"  # image of a component; ties: the smallest content hash. See keep.py
    giants: GiantParams | None = GiantParams()  # None: components are left as they are, however large
    largest_share: float = Field(0.1, gt=0, le=1)  # of the pool; a component still larger stops the stage: it chains
    largest_least: int = Field(
        100, ge=1, le=10**12
    )  # images; a component of no more never stops it, whatever its share
    labels_on_disk_from: int = Field(500_000_000, ge=1, le=10**12)  # images from which the components' table is a file
    part_rows: int = Field(1_000_000, ge=1, le=10**12)  # images, at least, a piece of the index and a part of the edges


class ViewsParams(Strict):
    """What is described of every image beside the image itself and its ``windows``."""

    flip: bool = True  # its mirror image, so that mirrored copies are found; false where mirrored is another thing


class DedupParams(Strict):
    """``params/dedup.yaml``."""

    descriptor: DescriptorParams
    # Crops of every image that are described beside it, (side kept, n) for n x n: what a cropped copy is found by
    windows: list[tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[int, Field(ge=1, le=64)]]] = []
    views: ViewsParams = ViewsParams()
    neighbours: NeighbourParams = NeighbourParams()
    auto: AutoParams = AutoParams()  # the rule of thresholds that are `auto`
    calibration: CalibrationParams | None = None  # None: no threshold may be `calibrated`
    graph: GraphParams
    relative: RelativeParams
    retrieval: RetrievalParams | None = None  # None: all that survives is selected
    balance: BalanceParams | None = None  # without queries: a sample spread evenly; not beside `retrieval`
    executor: ExecutorParams = ExecutorParams(workers=0)
    chunk: int = Field(512, ge=1, le=1_000_000)  # images a unit of work
    least_kept: Share = 0.5  # of the images; a run that leaves less says which values dropped the others
    checks: CheckParams = CheckParams()
    memory: MemoryParams = MemoryParams()  # of the joins that decisions and manifest are made by

    def blamed(self, at_self: float, at_relative: float) -> dict[str, str]:
        """Reason to drop an image -> the value that decided, for the thresholds in use."""
        retrieval, balance = self.retrieval, self.balance

        def threshold(name: str, given: float | str, used: float) -> str:
            return f"{name} {used:.4g}" + (f" ({given})" if isinstance(given, str) else "")

        return {
            "self-duplicate": threshold("graph.threshold", self.graph.threshold, at_self),
            "held-out": threshold("relative.threshold", self.relative.threshold, at_relative),
            "not-retrieved": f"retrieval.queries {', '.join(retrieval.queries)} with retrieval.min_similarity "
            f"{retrieval.min_similarity:g}" if retrieval else "retrieval",
            "not-sampled": f"balance.images {balance.images:,}" if balance else "balance",
        }  # fmt: skip

    def described_views(self) -> Views:
        """The views of every image that are described."""
        return Views(tuple(self.windows), self.views.flip)
