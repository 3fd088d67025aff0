"""DINOv2's logistic regression: one fit for each inverse strength C of the L2 penalty, each begun where the last ended.

The paper's grid is 45 values of C from 1e-6 to 1e5, evenly spaced in their logarithm (dinov2's
``eval/log_regression.py``, which uses cuML). Here it is scikit-learn's L-BFGS on the same objective, in double
precision. The objective is convex, so a fit that starts from its neighbour's weights ends at the same optimum as
one that starts from zero, in fewer steps. It starts where the last two optima lead, if the loss is lower there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from components.errors import VitrailError
from components.params import Cost, Seed, Share, Strict


class LogisticParams(Strict):
    """The grid and how each value is fitted."""

    costs: list[Cost] = Field(min_length=1)  # C, inverse strengths of the L2 penalty
    max_iterations: int = Field(1000, ge=1, le=1_000_000)  # of L-BFGS
    tolerance: float = Field(1e-6, gt=0, lt=1)  # largest slope at which a fit ends. DINOv2: 1e-12, with cuML
    held_out: Share = 0.1  # of the training side, by which C is chosen
    seed: Seed = 0


def logistic_path(
    train: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    tests: Sequence[npt.NDArray[np.floating]],
    params: LogisticParams,
    warm: bool = True,
) -> list[npt.NDArray[np.int64]]:
    """Predictions [len(costs), M] for each of ``tests`` [M, D], from fits to ``train`` [N, D] as it is.

    Args:
        warm: begin each fit at the weights of the next stronger penalty, or where the last two lead in log C if the
            loss is lower there; False: at zero.

    Raises:
        VitrailError: fewer than two classes, or features that are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if len(np.unique(labels)) < 2:
        raise VitrailError("logistic regression: the training side has fewer than two classes")
    if not all(np.isfinite(part).all() for part in [train, *tests]):
        raise VitrailError("logistic regression: features hold NaN or infinity; the network has diverged")
    rows = np.asarray(train, np.float64)
    codes = np.unique(labels, return_inverse=True)[1]
    order = np.argsort(params.costs)  # strongest penalty first: its optimum is nearest to zero
    model = LogisticRegression(max_iter=params.max_iterations, tol=params.tolerance, warm_start=warm)
    found = [np.empty((len(params.costs), len(test)), np.int64) for test in tests]
    with warnings.catch_warnings(), threadpool_limits(1 if rows.size < 1 << 24 else None):
        warnings.simplefilter("ignore")  # weak penalties stop at max_iterations; the choice judges them all the same
        known: list[Optimum] = []
        for number in order.tolist():
            cost = params.costs[number]
            if warm and len(known) > 1:
                model.coef_, model.intercept_ = _begin(known, cost, rows, codes)
            model.set_params(C=cost).fit(rows, labels)
            known = [*known[-1:], Optimum(cost, model.coef_.copy(), model.intercept_.copy())]
            for part, test in zip(found, tests, strict=True):
                part[number] = model.predict(np.asarray(test, np.float64))
    return found


class Optimum(NamedTuple):
    """The end of one fit: C, weights [K, D] (one row for two classes), biases."""

    cost: float
    weights: npt.NDArray[np.float64]
    biases: npt.NDArray[np.float64]


def _begin(
    known: Sequence[Optimum], cost: float, rows: npt.NDArray[np.float64], codes: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Where the fit of ``cost`` begins: at the last optimum, or as far beyond it as the last two lie apart in log C."""
    before, last = known
    gap = math.log(last.cost / before.cost)
    reach = math.log(cost / last.cost) / gap if gap > 0 else 0.0
    beyond = Optimum(
        cost,
        last.weights + reach * (last.weights - before.weights),
        last.biases + reach * (last.biases - before.biases),
    )
    best = min((last, beyond), key=lambda one: _loss(one, cost, rows, codes))
    return best.weights.copy(), best.biases.copy()


def _loss(at: Optimum, cost: float, rows: npt.NDArray[np.float64], codes: npt.NDArray[np.integer]) -> float:
    """The cross-entropy, summed, with the penalty of ``cost``."""
    from scipy.special import logsumexp

    levels = rows @ at.weights.T + at.biases
    if levels.shape[1] == 1:  # of two classes the first has level 0
        levels = np.concatenate([np.zeros_like(levels), levels], 1)
    entropy = logsumexp(levels, axis=1) - levels[np.arange(len(rows)), codes]
    return float(entropy.sum() + np.square(at.weights).sum() / (2 * cost))
