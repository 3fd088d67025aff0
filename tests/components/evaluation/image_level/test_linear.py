"""The probe is scikit-learn's regression, and its strength is chosen without the test side."""

from __future__ import annotations

import numpy as np
import pytest

from components.errors import VitrailError
from components.evaluation.image_level.linear import LinearParams, choose_cost, linear_probe

PARAMS = LinearParams(costs=[1e-4, 1e-2, 1.0], folds=3, max_iterations=300, seed=0)


def blobs(seed: int, count: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    centres = np.random.default_rng(99).normal(size=(3, 12))
    return centres[labels] + spread * generator.normal(size=(count, 12)), labels


def test_it_is_scikit_learns_regression_at_the_chosen_cost() -> None:
    from sklearn.linear_model import LogisticRegression

    (train, labels), (test, truth) = blobs(0, 300), blobs(1, 200)
    found = linear_probe(train, labels, test, PARAMS)
    mean, std = train.mean(0), train.std(0)
    theirs = LogisticRegression(C=found.cost, max_iter=300).fit((train - mean) / std, labels)
    assert (found.predicted == theirs.predict((test - mean) / std)).all()
    assert (found.predicted == truth).mean() > 0.85
    assert found.cost in PARAMS.costs


def test_the_cost_is_that_of_cross_validation() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, labels = blobs(2, 150, spread=3.0)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    scores = {
        cost: cross_val_score(make_pipeline(StandardScaler(), LogisticRegression(C=cost)), train, labels, cv=folds)
        for cost in PARAMS.costs
    }
    cost, validation = choose_cost(train, labels, PARAMS)
    assert np.mean(scores[cost]) == pytest.approx(max(np.mean(s) for s in scores.values()), abs=0.01)
    assert validation == pytest.approx(np.mean(scores[cost]), abs=1e-9)


def test_with_groups_the_cost_is_that_of_cross_validation_over_whole_groups() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, labels = blobs(2, 150, spread=3.0)
    groups = np.arange(150) // 5
    train = train + 4.0 * np.random.default_rng(5).normal(size=(30, 12))[groups]  # what a group has in common
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=0)
    right = {}
    for cost in PARAMS.costs:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=cost, max_iter=300))
        right[cost] = np.mean(cross_val_predict(model, train, labels, cv=folds, groups=groups) == labels)
    cost, validation = choose_cost(train, labels, PARAMS, groups)
    assert validation == pytest.approx(max(right.values()), abs=1e-9)
    assert right[cost] == max(right.values())


def test_scale_of_features_does_not_matter() -> None:
    (train, labels), (test, _) = blobs(0, 200), blobs(1, 100)
    scale = np.logspace(-3, 3, 12)
    plain, scaled = linear_probe(train, labels, test, PARAMS), linear_probe(train * scale, labels, test * scale, PARAMS)
    assert (plain.predicted == scaled.predicted).mean() > 0.98


def test_faults_are_named() -> None:
    train, _ = blobs(0, 30)
    with pytest.raises(VitrailError, match="fewer than two classes"):
        linear_probe(train, np.zeros(30, int), train, PARAMS)
    with pytest.raises(VitrailError, match="folds"):
        linear_probe(train[:3], np.arange(3), train, PARAMS)
