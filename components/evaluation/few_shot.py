"""Label efficiency: accuracy when only a few images of each class carry a label."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from components.errors import VitrailError
from components.evaluation.intervals import Interval
from components.evaluation.knn import knn_predict
from components.evaluation.linear import SMALL
from components.params import Seed, Strict


class FewShotParams(Strict):
    """How many labelled images a class, and how often they are drawn."""

    per_class: list[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(min_length=1)
    tries: int = Field(5, ge=2, le=1000)  # draws, over which the mean and its interval are taken
    k: int = Field(20, ge=1, le=1_000_000)  # neighbours that vote
    seed: Seed = 0


class FewShot(NamedTuple):
    """Shares of 0 ... 1: the mean over the draws with its interval, and the smallest class of a draw."""

    accuracy: Interval
    fewest: int


class Labelled(NamedTuple):
    """Images of one side of a task."""

    features: npt.NDArray[np.floating]  # [N, D]
    labels: npt.NDArray[np.integer]  # [N]


def few_shot(
    train: Labelled, test: Labelled, params: FewShotParams, temperature: float = 0.07, confidence: float = 0.95
) -> dict[int, FewShot]:
    """Images a class -> accuracy of the kNN vote on ``test``, from draws of ``train``.

    A class with fewer images than asked gives all it has; ``fewest`` tells. All networks see the same draws, since
    they depend on labels and seed alone.

    Raises:
        VitrailError: no test images.
    """
    from threadpoolctl import threadpool_limits

    if not len(test.labels):
        raise VitrailError("few-shot: there are no test images")
    # Many small products: threads would cost more than they save (3.7 s with two, 0.3 s with one on a busy machine).
    with threadpool_limits(1 if max(train.features.size, test.features.size) < SMALL else None):
        return _few_shot(train, test, params, temperature, confidence)


def _few_shot(
    train: Labelled, test: Labelled, params: FewShotParams, temperature: float, confidence: float
) -> dict[int, FewShot]:
    labels, found = train.labels, {}
    for count in params.per_class:
        accuracies = []
        fewest = count
        for number in range(params.tries):
            rows = draw(labels, count, [params.seed, count, number])
            fewest = min(fewest, int(np.unique(labels[rows], return_counts=True)[1].min()))
            predicted = knn_predict(train.features[rows], labels[rows], test.features, params.k, temperature)
            accuracies.append(float((predicted == test.labels).mean()))
        found[count] = FewShot(mean_interval(accuracies, confidence), fewest)
    return found


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
