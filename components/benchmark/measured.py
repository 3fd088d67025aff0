"""How all contenders are measured, and what was measured of them on one benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.benchmark.features.contenders import Contender
from components.benchmark.features.spread import HERE, Placement
from components.benchmark.methods.figure import Figure
from components.benchmark.methods.label_efficiency import FewFigure
from components.benchmark.methods.outcome import Outcome
from components.benchmark.methods.protocol import Protocol
from components.benchmark.methods.scoring import Score
from components.benchmark.params import BenchmarkStageParams
from components.evaluation.sets.dense_set import DenseBenchmark
from components.evaluation.sets.labelled_set import Benchmark


@dataclass(frozen=True)
class Setup:
    """How everything is measured."""

    params: BenchmarkStageParams
    protocol: Protocol
    device: str = "cpu"  # of heads, and of what this process computes
    place: Placement = HERE


@dataclass(frozen=True)
class Measured:
    """What was measured on one benchmark."""

    benchmark: Benchmark
    contenders: list[Contender]  # with the baseline that was fitted on its training images
    dense: list[Figure]  # of segmentation, depth and matching
    pictures: DenseBenchmark | None = None  # None: it has a label an image
    scores: list[Score] = field(default_factory=list)
    few: list[FewFigure] = field(default_factory=list)
    right: dict[str, dict[tuple[str, str], Outcome]] = field(default_factory=dict)  # by contender
    ranked: list[Figure] = field(default_factory=list)

    own_digest: str | None = None  # of what is more than images, labels, masks or depths

    @property
    def name(self) -> str:
        """The benchmark's."""
        return self.benchmark.name

    @property
    def digest(self) -> str:
        """Of the images, and of their labels, masks or depths."""
        if self.own_digest is not None:
            return self.own_digest
        return self.benchmark.digest if self.pictures is None else self.pictures.digest

    @property
    def figures(self) -> list[Figure]:
        """All that are no accuracies."""
        return [*self.ranked, *self.dense, *[one.figure for one in self.few]]
