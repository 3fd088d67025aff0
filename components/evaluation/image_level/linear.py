"""A linear probe: logistic regression on standardised frozen features, its strength chosen on the training side."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from components.errors import VitrailError
from components.params import Cost, Seed, Strict

SMALL = 1 << 24  # numbers in a feature table below which a fit is faster on one thread than on many


class LinearParams(Strict):
    """The probe's own numbers."""

    costs: list[Cost] = Field(min_length=1)  # inverse strengths of the L2 penalty to choose from
    folds: int = Field(3, ge=2, le=1000)  # of the training side, to choose by cross-validation
    max_iterations: int = Field(300, ge=1, le=1_000_000)  # of L-BFGS
    seed: Seed = 0  # of the folds


class Probed(NamedTuple):
    """Predictions [M] for the test side, the chosen cost, and the cross-validated accuracy it was chosen by."""

    predicted: npt.NDArray[np.int64]
    cost: float
    validation: float


def linear_probe(
    train: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    test: npt.NDArray[np.floating],
    params: LinearParams,
    groups: npt.NDArray[np.integer] | None = None,
) -> Probed:
    """Fit on ``train`` [N, D] and predict ``test`` [M, D]; the test side has no part in any choice.

    The cost with the best mean accuracy over the folds wins (the smallest of equals), then all of ``train`` is fitted.

    Args:
        groups: [N]; rows of one group stay in one fold.

    Raises:
        VitrailError: fewer than two classes, or a class with fewer images than folds.
    """
    cost, validation = choose_cost(train, labels, params, groups)
    predicted = fit(train, labels, cost, params.max_iterations).predict(test).astype(np.int64)
    return Probed(predicted, cost, validation)


def choose_cost(
    train: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    params: LinearParams,
    groups: npt.NDArray[np.integer] | None = None,
) -> tuple[float, float]:
    """The cost that cross-validation on ``train`` prefers, and its mean accuracy there."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if len(params.costs) == 0 or len(np.unique(labels)) < 2:
        raise VitrailError("linear probe: the training side has fewer than two classes")
    units = np.bincount(labels).max() if groups is None else len(np.unique(groups))
    if units < params.folds:
        raise VitrailError(f"linear probe: too few training images for {params.folds} folds; lower linear.folds")
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = kind(params.folds, shuffle=True, random_state=params.seed)
    right = dict.fromkeys(sorted(params.costs), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rare class may miss a fold; it is scored all the same
        splits = list(folds.split(train, labels, groups))
    with few_threads(train.size):
        for fitted, held in splits:
            if len(np.unique(labels[fitted])) < 2:
                continue  # whole groups may leave one class alone: such a fold tells no cost from another
            for cost in right:
                model = fit_here(train[fitted], labels[fitted], cost, params.max_iterations)
                right[cost] += int((model.predict(train[held]) == labels[held]).sum())
    best = max(right, key=lambda cost: (right[cost], -cost))
    return best, right[best] / len(train)


def fit(features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], cost: float, max_iterations: int) -> Any:
    """scikit-learn's standardisation and multinomial logistic regression, fitted on [N, D] and [N].

    A small table is fitted on one thread: after torch had used its own threads, fits of raw pixels took seven times as
    long with two BLAS threads as with one (2 cores).
    """
    with few_threads(features.size):
        return fit_here(features, labels, cost, max_iterations)


def few_threads(size: int) -> Any:
    """A context in which fits of tables of ``size`` numbers use as many threads as suits them.

    Entering takes 15 ms, half of a small fit: many fits share one.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1 if size < SMALL else None)


def fit_here(
    features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], cost: float, max_iterations: int
) -> Any:
    """:func:`fit` with the threads that there are."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=cost, max_iter=max_iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weak penalties stop at max_iterations; validation judges them all the same
        return make_pipeline(StandardScaler(), regression).fit(features, labels)
