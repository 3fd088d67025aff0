"""Label efficiency: what a classifier reaches when only a few images of each class carry a label."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from components.errors import VitrailError
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.image_level.knn import knn_predict
from components.evaluation.image_level.linear import few_threads, fit_here
from components.evaluation.statistics.intervals import Interval
from components.params import Cost, Seed, Strict

LINEAR = "linear"  # the name of the probe's figures
Predicted = npt.NDArray[np.int64]


class FewShotParams(Strict):
    """How many labelled images a class, and how often they are drawn."""

    per_class: list[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(min_length=1)
    tries: int = Field(5, ge=2, le=1000)  # draws, over which the mean and its interval are taken
    k: int = Field(20, ge=1, le=1_000_000)  # neighbours that vote
    # Inverse L2 strength of the linear probe, the same for every draw: a few images cannot choose one. null: no probe
    cost: Cost | None = None
    max_iterations: int = Field(300, ge=1, le=1_000_000)  # of its L-BFGS
    seed: Seed = 0


class FewShot(NamedTuple):
    """Shares of 0 ... 1: means over the draws with their intervals, and the smallest class of a draw."""

    accuracy: Interval
    balanced: Interval  # the mean over the classes of the share of each that is right
    fewest: int


def few_shot(
    train: LabelledFeatures,
    test: LabelledFeatures,
    params: FewShotParams,
    temperature: float = 0.07,
    confidence: float = 0.95,
) -> dict[tuple[str, int], FewShot]:
    """(classifier, images a class) -> its figures on ``test``, from draws of ``train``.

    Classifiers are ``knn20`` (of ``params.k``) and, with ``params.cost``, ``linear``. A class with fewer images than
    asked gives all it has; ``fewest`` tells. All networks see the same draws, since they depend on labels and seed
    alone. Where one class alone has images, the probe calls everything by it.

    Raises:
        VitrailError: no test images.
    """
    if not len(test.labels):
        raise VitrailError("few-shot: there are no test images")
    # Many small products: threads would cost more than they save (3.7 s with two, 0.3 s with one on a busy machine).
    with few_threads(max(train.features.size, test.features.size)):
        found: dict[tuple[str, int], FewShot] = {}
        for count in params.per_class:
            found |= {(name, count): one for name, one in _drawn(train, test, params, count, (temperature, confidence))}
        return found


def _drawn(
    train: LabelledFeatures, test: LabelledFeatures, params: FewShotParams, count: int, how: tuple[float, float]
) -> list[tuple[str, FewShot]]:
    temperature, confidence = how
    fewest, right = count, dict[str, list[npt.NDArray[np.bool_]]]()
    for number in range(params.tries):
        rows = draw(train.labels, count, [params.seed, count, number])
        drawn = train[rows]
        fewest = min(fewest, int(np.unique(drawn.labels, return_counts=True)[1].min()))
        predicted = {f"knn{params.k}": knn_predict(drawn, test.features, params.k, temperature)}
        if params.cost is not None:
            predicted[LINEAR] = _linear(drawn, test.features, params.cost, params.max_iterations)
        for name, classes in predicted.items():
            right.setdefault(name, []).append(classes == test.labels)
    return [
        (
            name,
            FewShot(
                mean_interval([float(one.mean()) for one in draws], confidence),
                mean_interval([balanced_accuracy(one, test.labels) for one in draws], confidence),
                fewest,
            ),
        )
        for name, draws in right.items()
    ]


def _linear(train: LabelledFeatures, test: npt.NDArray[np.floating], cost: float, max_iterations: int) -> Predicted:
    if len(np.unique(train.labels)) < 2:
        return np.full(len(test), train.labels[0], np.int64)
    found: Predicted = fit_here(train.features, train.labels, cost, max_iterations).predict(test).astype(np.int64)
    return found


def balanced_accuracy(right: npt.NDArray[np.bool_], labels: npt.NDArray[np.integer]) -> float:
    """The mean over the classes of ``labels`` [M] of the share of each that is ``right`` [M]."""
    counts = np.bincount(labels)
    known = counts > 0
    return float(np.mean(np.bincount(labels, right, len(counts))[known] / counts[known]))


def draw(labels: npt.NDArray[np.integer], per_class: int, seed: list[int]) -> npt.NDArray[np.int64]:
    """Rows of at most ``per_class`` images of each class, in rising order."""
    generator = np.random.default_rng(seed)
    rows = [generator.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels).tolist()]
    return np.sort(np.concatenate(rows)).astype(np.int64)


def mean_interval(values: list[float], confidence: float = 0.95) -> Interval:
    """The mean of independent draws, with Student's interval."""
    from scipy.stats import t

    mean = float(np.mean(values))
    half = float(t.ppf(0.5 + confidence / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))
