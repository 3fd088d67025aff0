"""What a contender reaches on one benchmark, and how it compares with its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from components.benchmark.features.contenders import Contender
from components.benchmark.methods.classify import grid_choices, knn_outcomes, logistic_choices, sides
from components.benchmark.methods.label_efficiency import FewFigure, few_figures
from components.benchmark.methods.outcome import Outcome
from components.benchmark.methods.protocol import Protocol
from components.errors import VitrailError
from components.evaluation.features.extract import Rows, without_equal_channels
from components.evaluation.image_level.linear import linear_probe
from components.evaluation.sets.benchmarks import Benchmark
from components.evaluation.statistics.intervals import Interval, paired_difference, wilson
from components.evaluation.statistics.selection import Choices
from components.params import Seed, Strict


class IntervalParams(Strict):
    """How sure is sure."""

    confidence: float = Field(0.95, gt=0, lt=1)
    samples: int = Field(10_000, ge=100, le=1_000_000)
    seed: Seed = 0


@dataclass(frozen=True)
class Difference:
    """An accuracy minus a baseline's, on the same images; percentage points."""

    against: str
    value: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0


@dataclass(frozen=True)
class Score:
    """One accuracy in percent, with its interval."""

    model: str
    kind: str
    benchmark: str
    task: str
    method: str  # "knn20", "linear"; "grid_test" was chosen on test images, "grid_heldout" on training images
    accuracy: float
    low: float
    high: float
    test_images: int
    cost: float | None = None  # chosen for the linear probe, on the training side
    differences: list[Difference] = field(default_factory=list)
    protocol: str = ""  # its label: name, version, digest
    setting: str = ""  # what was chosen: the head, the strength, k

    @property
    def metric(self) -> str:
        """The name of the metric in MLflow: the same for every model."""
        return f"{self.benchmark}/{self.task}/{self.method}"

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        found = asdict(self)
        found["differences"] = [asdict(d) | {"better": d.better} for d in self.differences]
        return found


def check_finite(features: Mapping[str, Rows]) -> None:
    """Refuse features, by the contender's name, of a network that has diverged: before hours of probes, not after.

    Raises:
        VitrailError: some are not finite.
    """
    for name, rows in features.items():
        if not np.isfinite(rows).all():
            raise VitrailError(
                f"{name}: its features hold NaN or infinity; the run it comes from has diverged, train it again"
            )


def outcomes(
    contender: Contender, features: Rows, benchmark: Benchmark, protocol: Protocol, confidence: float, device: str
) -> tuple[dict[tuple[str, str], Outcome], list[FewFigure]]:
    """(task, method) -> whether each test image was classified rightly; and label efficiency.

    Args:
        features: [n, D] of all images of ``benchmark``, as the contender's extractor gives them, all finite.
    """
    if contender.kind == "raw":
        features = without_equal_channels(features)
    main, params = contender.extractor.main(features), protocol.params
    found: dict[tuple[str, str], Outcome] = {}
    few: list[FewFigure] = []
    for task, labels in benchmark.labels.items():
        side = sides(main, labels, benchmark)
        found |= {(task, method): one for method, one in knn_outcomes(side, params.knn, device).items()}
        probed = linear_probe(side.train.features, side.train.labels, side.test.features, params.linear)
        found[task, "linear"] = Outcome(probed.predicted == side.test.labels, probed.cost)
        if params.linear_grid is not None:
            grid = params.linear_grid
            inputs = contender.extractor.inputs(features, grid.blocks, grid.pooling)
            found |= _both(task, "grid", grid_choices(inputs, side, benchmark, grid, device))
        if params.logistic is not None:
            found |= _both(task, "logistic", logistic_choices(side, params.logistic))
        own = {method: one for (name, method), one in found.items() if name == task}
        few += few_figures(contender, (benchmark.name, task), side, own, protocol, confidence)
    return found, few


def _both(task: str, method: str, found: Choices) -> dict[tuple[str, str], Outcome]:
    return {
        (task, f"{method}_test"): Outcome(found.on_test.right, None, found.on_test.setting),
        (task, f"{method}_heldout"): Outcome(found.held_out.right, None, found.held_out.setting),
    }


def scores(
    contenders: Sequence[Contender],
    right: Mapping[str, Mapping[tuple[str, str], Outcome]],
    benchmark: Benchmark,
    intervals: IntervalParams,
    protocol: str,
) -> list[Score]:
    """A score for every contender, task and method; ``right`` holds the outcomes by the contender's name."""
    found = []
    for contender in contenders:
        for (task, method), (ours, cost, setting) in right[contender.name].items():
            share = wilson(int(ours.sum()), len(ours), intervals.confidence)
            differences = []
            for baseline in contender.baselines:
                theirs = right[baseline][task, method].right
                gap = paired_difference(
                    ours, theirs, confidence=intervals.confidence, samples=intervals.samples, seed=intervals.seed
                )
                differences.append(Difference(baseline, *_percent(gap)))
            found.append(
                Score(
                    contender.name,
                    contender.kind,
                    benchmark.name,
                    task,
                    method,
                    *_percent(share),
                    len(ours),
                    cost,
                    differences,
                    protocol,
                    setting,
                )
            )
    return found


def majority(benchmark: Benchmark) -> dict[str, float]:
    """Percent of test images that the commonest training class gets right, by task."""
    return {
        task: 100 * float((labels[benchmark.test] == np.bincount(labels[~benchmark.test]).argmax()).mean())
        for task, labels in benchmark.labels.items()
    }


def _percent(interval: Interval) -> tuple[float, float, float]:
    value, low, high = (round(100 * part, 3) for part in interval)
    return value, low, high
