"""What a contender reaches on one benchmark, and how it stands against its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from components.benchmark.contenders import Contender
from components.errors import VitrailError
from components.evaluation.benchmarks import Benchmark
from components.evaluation.features import Rows, without_equal_channels
from components.evaluation.intervals import Interval, paired_difference, wilson
from components.evaluation.knn import knn_predict_each
from components.evaluation.linear import LinearParams, linear_probe
from components.params import Seed, Strict


class KnnParams(Strict):
    """The vote of neighbours."""

    k: list[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(min_length=1)
    shown: int = Field(20, ge=1, le=1_000_000)  # the k in the table
    temperature: float = Field(0.07, gt=0, le=10.0)

    @model_validator(mode="after")
    def _shown_is_measured(self) -> KnnParams:
        if self.shown not in self.k:
            raise ValueError(f"shown: {self.shown} is not among k {self.k}")
        return self


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
    method: str  # "knn20", "linear"
    accuracy: float
    low: float
    high: float
    test_images: int
    cost: float | None = None  # chosen for the linear probe, on the training side
    differences: list[Difference] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The name of the metric in MLflow: the same for every model."""
        return f"{self.benchmark}/{self.task}/{self.method}"

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        found = asdict(self)
        found["differences"] = [asdict(d) | {"better": d.better} for d in self.differences]
        return found


Outcome = tuple[npt.NDArray[np.bool_], float | None]  # right or wrong for each test image; the probe's cost


def outcomes(
    contender: Contender, features: Rows, benchmark: Benchmark, knn: KnnParams, linear: LinearParams, device: str
) -> dict[tuple[str, str], Outcome]:
    """(task, method) -> whether each test image was classified rightly."""
    if contender.kind == "raw":
        features = without_equal_channels(features)
    train, test = features[~benchmark.test], features[benchmark.test]
    if not np.isfinite(features).all():
        raise VitrailError(
            f"{contender.name}: its features hold NaN or infinity; the run it comes from has diverged, train it again"
        )
    found: dict[tuple[str, str], Outcome] = {}
    for task, labels in benchmark.labels.items():
        known, truth = labels[~benchmark.test], labels[benchmark.test]
        for k, predicted in knn_predict_each(train, known, test, knn.k, knn.temperature, device).items():
            found[task, f"knn{k}"] = predicted == truth, None
        probed = linear_probe(train, known, test, linear)
        found[task, "linear"] = probed.predicted == truth, probed.cost
    return found


def scores(
    contenders: Sequence[Contender],
    right: Mapping[str, Mapping[tuple[str, str], Outcome]],
    benchmark: Benchmark,
    intervals: IntervalParams,
) -> list[Score]:
    """A score for every contender, task and method; ``right`` holds the outcomes by the contender's name."""
    found = []
    for contender in contenders:
        for (task, method), (ours, cost) in right[contender.name].items():
            share = wilson(int(ours.sum()), len(ours), intervals.confidence)
            differences = []
            for baseline in contender.baselines:
                theirs = right[baseline][task, method][0]
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
