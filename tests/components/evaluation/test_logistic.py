"""The logistic grid agrees with scikit-learn's independent fits, warm or cold."""

from __future__ import annotations

import numpy as np
import pytest

from components.errors import VitrailError
from components.evaluation.logistic import LogisticParams, logistic_path


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, count)
    return np.random.default_rng(9).normal(size=(4, 10))[labels] + 1.5 * generator.normal(size=(count, 10)), labels


def test_warm_starts_end_where_independent_fits_do() -> None:
    from sklearn.linear_model import LogisticRegression

    (train, labels), (test, _) = blobs(200, 0), blobs(150, 1)
    params = LogisticParams(costs=[1.0, 1e-3, 0.03, 30.0], tolerance=1e-8)
    (warm,) = logistic_path(train, labels, [test], params)
    for number, cost in enumerate(params.costs):
        theirs = LogisticRegression(C=cost, tol=1e-8, max_iter=1000).fit(train, labels).predict(test)
        assert (warm[number] == theirs).all()
    cold = logistic_path(train, labels, [test, test[:5]], params, warm=False)
    assert (cold[0] == warm).all()
    assert cold[1].shape == (4, 5)


def test_labels_need_not_be_dense_and_faults_are_named() -> None:
    (train, labels), params = blobs(60, 0), LogisticParams(costs=[1.0])
    (found,) = logistic_path(train, labels * 10 + 7, [train], params)
    assert set(found.ravel()) <= {7, 17, 27, 37}
    with pytest.raises(VitrailError, match="fewer than two classes"):
        logistic_path(train, np.zeros(60, int), [train], params)
    with pytest.raises(VitrailError, match="NaN or infinity"):
        logistic_path(train * np.nan, labels, [train], params)
