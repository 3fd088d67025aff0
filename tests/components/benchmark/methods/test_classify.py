"""All methods of classification on small features: both rules of choice, and labels that are hard to learn from."""

from __future__ import annotations

import numpy as np
import pytest

from components.benchmark.methods.classify import FeatureSplit, grid_choices, knn_outcomes, logistic_choices, sides
from components.benchmark.methods.protocol import KnnParams
from components.errors import VitrailError
from components.evaluation.image_level.linear_grid import LinearGridParams
from components.evaluation.image_level.logistic import LogisticParams
from components.evaluation.sets.benchmarks import Benchmark
from components.evaluation.statistics.selection import Choices

KNN = KnnParams(k=[1, 5], shown=5, choose=True)
GRID = LinearGridParams(rates=[0.1, 1.0], blocks=[1], pooling=[False], steps=30, batch=32)
LOGISTIC = LogisticParams(costs=[0.1, 1.0])


def made(train: list[int], test: list[int]) -> tuple[np.ndarray, FeatureSplit, Benchmark]:
    labels = np.array(train + test)
    centres = np.random.default_rng(3).normal(size=(9, 6)) * 2
    rows = (centres[labels] + np.random.default_rng(4).normal(size=(len(labels), 6))).astype(np.float32)
    held = np.arange(len(labels)) >= len(train)
    keys = [str(row) for row in range(len(labels))]
    benchmark = Benchmark("b", keys, None, {"t": labels}, {}, held)  # type: ignore[arg-type]  # no picture is read
    return rows, sides(rows, labels, benchmark), benchmark


def every(train: list[int], test: list[int]) -> list[Choices]:
    rows, side, benchmark = made(train, test)
    return [grid_choices({"f": rows}, side, benchmark, GRID, "cpu"), logistic_choices(side, LOGISTIC)]


def test_both_rules_are_reported_and_the_best_on_test_is_never_below() -> None:
    train, test = [0, 1, 2] * 30, [0, 1, 2] * 10
    for found in every(train, test):
        assert found.on_test.right.mean() >= found.held_out.right.mean() > 0.8
        assert found.on_test.setting
    outcomes = knn_outcomes(made(train, test)[1], KNN, "cpu")
    assert set(outcomes) == {"knn1", "knn5", "knn_test", "knn_heldout"}
    assert outcomes["knn_test"].right.sum() == max(outcomes[f"knn{k}"].right.sum() for k in KNN.k)
    assert outcomes["knn_heldout"].setting in {"k 1", "k 5"}


def test_a_class_that_training_lacks_is_wrong_and_nothing_else() -> None:
    train, test = [0, 1] * 30, [0, 1] * 10 + [7] * 5
    for found in every(train, test):
        assert not found.on_test.right[20:].any()
        assert found.on_test.right[:20].mean() > 0.8
    assert not knn_outcomes(made(train, test)[1], KNN, "cpu")["knn1"].right[20:].any()


def test_one_image_a_class_leaves_nothing_to_choose_by() -> None:
    with pytest.raises(VitrailError, match="training images would be held out"):
        every([0, 1, 2], [0, 1, 2])
