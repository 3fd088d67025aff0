"""The logistic grid agrees with scikit-learn's independent fits, warm or cold."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from components.errors import VitrailError
from components.evaluation.image_level.logistic import LogisticParams, Optimum, _begin, _loss, logistic_path


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, count)
    return np.random.default_rng(9).normal(size=(4, 10))[labels] + 1.5 * generator.normal(size=(count, 10)), labels


def test_warm_starts_end_where_independent_fits_do() -> None:
    (train, labels), (test, _) = blobs(200, 0), blobs(150, 1)
    params = LogisticParams(costs=[1.0, 1e-3, 0.03, 30.0], tolerance=1e-8)
    (warm,) = logistic_path(train, labels, [test], params)
    for number, cost in enumerate(params.costs):
        theirs = LogisticRegression(C=cost, tol=1e-8, max_iter=1000).fit(train, labels).predict(test)
        assert (warm[number] == theirs).all()
    cold = logistic_path(train, labels, [test, test[:5]], params, warm=False)
    assert (cold[0] == warm).all()
    assert cold[1].shape == (4, 5)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_fine_grid_begins_lower_and_ends_at_the_same_optima(classes: int) -> None:
    (train, labels), (test, _) = blobs(150, 0), blobs(100, 1)
    labels = labels % classes
    params = LogisticParams(costs=np.logspace(-3, 2, 12).tolist(), tolerance=1e-8)
    warm, cold = (logistic_path(train, labels, [test], params, warm=warm)[0] for warm in (True, False))
    assert (warm == cold).all()
    width = 1 if classes == 2 else classes
    zero = Optimum(1.0, np.zeros((width, 10)), np.zeros(width))
    assert _loss(zero, 1.0, train, labels) == pytest.approx(150 * np.log(classes))
    fits = []
    for cost in (0.01, 0.1, 1.0):
        model = LogisticRegression(C=cost, tol=1e-8, max_iter=1000).fit(train, labels)
        fits.append(Optimum(cost, model.coef_, model.intercept_))
    begun = Optimum(1.0, *_begin(fits[:2], 1.0, train, labels))
    ends = [_loss(one, 1.0, train, labels) for one in (fits[2], begun, fits[1])]
    assert ends == sorted(ends)
    assert ends[0] < ends[2]


def test_labels_need_not_be_dense_and_faults_are_named() -> None:
    (train, labels), params = blobs(60, 0), LogisticParams(costs=[1.0])
    (found,) = logistic_path(train, labels * 10 + 7, [train], params)
    assert set(found.ravel()) <= {7, 17, 27, 37}
    with pytest.raises(VitrailError, match="fewer than two classes"):
        logistic_path(train, np.zeros(60, int), [train], params)
    with pytest.raises(VitrailError, match="NaN or infinity"):
        logistic_path(train * np.nan, labels, [train], params)
