"""The methods of classification, each chosen by the paper's rule and by held-out training images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components.benchmark.methods.outcome import Outcome
from components.benchmark.methods.protocol import KnnParams
from components.evaluation.features.extract import Rows
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.image_level.knn import knn_predict_each
from components.evaluation.image_level.linear_grid import LinearGridParams, train_heads
from components.evaluation.image_level.logistic import LogisticParams, logistic_path
from components.evaluation.sets.benchmarks import Benchmark
from components.evaluation.statistics.selection import Choices, choices, divide

HELD_OUT, SEED = 0.1, 0  # of kNN's choice of k

Labels = npt.NDArray[np.int64]


class FeatureSplit(NamedTuple):
    """Features and labels of both sides of a task."""

    train: LabelledFeatures
    test: LabelledFeatures
    groups: Labels | None  # of the training side


def sides(features: Rows, labels: Labels, benchmark: Benchmark) -> FeatureSplit:
    """``features`` [n, D] and ``labels`` [n] of a benchmark by side."""
    test = benchmark.test
    groups = None if benchmark.groups is None else benchmark.groups[~test]
    both = LabelledFeatures(features, labels)
    return FeatureSplit(both[~test], both[test], groups)


def knn_outcomes(side: FeatureSplit, params: KnnParams, device: str) -> dict[str, Outcome]:
    """``knn10`` and so on; with ``choose`` also ``knn_test`` and ``knn_heldout``."""
    found = knn_predict_each(side.train, side.test.features, params.k, params.temperature, device)
    outcomes = {f"knn{k}": Outcome(predicted == side.test.labels) for k, predicted in found.items()}
    if params.choose:
        held = divide(side.train.labels, HELD_OUT, SEED, side.groups)
        checking = side.train[held]
        checked = knn_predict_each(side.train[~held], checking.features, params.k, params.temperature, device)
        both = choices(
            np.stack([found[k] == side.test.labels for k in params.k]),
            np.stack([checked[k] == checking.labels for k in params.k]),
            [f"k {k}" for k in params.k],
        )
        outcomes["knn_test"] = Outcome(both.on_test.right, None, both.on_test.setting)
        outcomes["knn_heldout"] = Outcome(both.held_out.right, None, both.held_out.setting)
    return outcomes


def grid_choices(
    inputs: Mapping[str, Rows], side: FeatureSplit, benchmark: Benchmark, params: LinearGridParams, device: str
) -> Choices:
    """The heads of the linear grid: fitted on all training images, and once more without those that choose.

    Args:
        inputs: name -> [n, D] of all images of ``benchmark``.
    """
    test = benchmark.test
    train = {name: rows[~test] for name, rows in inputs.items()}
    held = divide(side.train.labels, params.held_out, params.seed, side.groups)
    whole = train_heads(train, side.train.labels, {name: rows[test] for name, rows in inputs.items()}, params, device)
    part = train_heads(
        {name: rows[~held] for name, rows in train.items()},
        side.train.labels[~held],
        {name: rows[held] for name, rows in train.items()},
        params,
        device,
    )
    return choices(whole.right(side.test.labels), part.right(side.train.labels[held]), whole.names)


def logistic_choices(side: FeatureSplit, params: LogisticParams) -> Choices:
    """The strengths of the logistic grid, likewise."""
    held = divide(side.train.labels, params.held_out, params.seed, side.groups)
    fitted, checking = side.train[~held], side.train[held]
    (whole,) = logistic_path(side.train.features, side.train.labels, [side.test.features], params)
    (part,) = logistic_path(fitted.features, fitted.labels, [checking.features], params)
    settings = [f"C {cost:g}" for cost in params.costs]
    return choices(whole == side.test.labels, part == checking.labels, settings)
