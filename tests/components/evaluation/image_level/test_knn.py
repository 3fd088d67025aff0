"""The vote of neighbours agrees with brute force and with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import VitrailError
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.image_level import knn
from components.evaluation.image_level.knn import Bank, knn_predict, knn_predict_each


def brute(train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int, temperature: float) -> list[int]:
    """One query at a time, in double precision."""
    found = []
    for query in test.astype(np.float64):
        cosines = [row @ query / np.linalg.norm(row) / np.linalg.norm(query) for row in train.astype(np.float64)]
        votes: dict[int, float] = dict.fromkeys(range(labels.max() + 1), 0.0)
        for row in sorted(range(len(train)), key=lambda row: -cosines[row])[:k]:
            votes[int(labels[row])] += float(np.exp(cosines[row] / temperature))
        found.append(max(votes, key=lambda label: votes[label]))
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.sampled_from([0.02, 0.07, 1.0]))
def test_it_equals_brute_force(seed: int, k: int, temperature: float) -> None:
    generator = np.random.default_rng(seed)
    train, test = generator.normal(size=(30, 6)), generator.normal(size=(9, 6))
    labels = generator.integers(0, 3, 30)
    found = knn_predict(LabelledFeatures(train, labels), test, k, temperature)
    assert found.tolist() == brute(train, labels, test, k, temperature)


def test_it_equals_scikit_learn_with_the_same_weights() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 600)
    train = generator.normal(size=(600, 16)) + labels[:, None] * 0.3
    test = generator.normal(size=(200, 16)) + generator.integers(0, 5, (200, 1)) * 0.3
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    assert (knn_predict(LabelledFeatures(train, labels), test, 20) == theirs.fit(train, labels).predict(test)).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_the_order_of_training_rows_changes_no_bit_even_where_features_are_equal(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    train, test = generator.integers(-1, 2, (24, 3)), generator.normal(size=(7, 3))
    labels, order = generator.integers(0, 3, 24), generator.permutation(24)
    (mine,), (theirs,) = (
        next(Bank.of(LabelledFeatures(rows.astype(float), known)).votes(test, [k]))
        for rows, known in ((train, labels), (train[order], labels[order]))
    )
    assert (mine == theirs).all()
    assert mine.sum(1).numpy() == pytest.approx(1)


def test_equal_features_share_the_votes_that_are_left() -> None:
    # Nearest is one row of class 0; then come four equal ones, classes 1, 1, 1, 2, of which two may still vote.
    train = np.array([[1.0, 0.0]] + [[1.0, 1.0]] * 4 + [[0.0, 1.0]])
    labels, query = np.array([0, 1, 2, 1, 1, 2]), np.array([[1.0, 0.1]])
    ((votes,),) = Bank.of(LabelledFeatures(train, labels)).votes(query, [3], 1.0)
    cosines = [(train[row] / np.linalg.norm(train[row]) @ query[0]) / np.linalg.norm(query) for row in (0, 1)]
    one, four = np.exp(cosines)
    assert votes[0].numpy() == pytest.approx(np.array([one, 1.5 * four, 0.5 * four]) / (one + 2 * four))
    equal = LabelledFeatures(np.ones((4, 2)), np.array([2, 1, 1, 2]))
    assert knn_predict(equal, np.ones((1, 2)), 1).tolist() == [1]  # the smaller class


def test_several_k_from_one_search_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    train, test, labels = generator.normal(size=(50, 8)), generator.normal(size=(33, 8)), generator.integers(0, 4, 50)
    whole = knn_predict_each(LabelledFeatures(train, labels), test, [1, 5, 20, 500])
    monkeypatch.setattr(knn, "BLOCK", 50 * 7)
    for k, predicted in knn_predict_each(LabelledFeatures(train, labels), test, [1, 5, 20, 500]).items():
        assert (predicted == whole[k]).all()
        assert (predicted == knn_predict(LabelledFeatures(train, labels), test, k)).all()


def test_faults_are_named() -> None:
    ones, labels = np.ones((4, 2)), np.zeros(4, int)
    train = LabelledFeatures(ones, labels)
    with pytest.raises(VitrailError, match="diverged"):
        knn_predict(LabelledFeatures(ones * np.nan, labels), ones, 1)
    with pytest.raises(VitrailError, match="do not fit"):
        knn_predict(train, np.ones((3, 5)), 1)
    with pytest.raises(VitrailError, match="at least 1"):
        knn_predict(train, ones, 0)
    with pytest.raises(VitrailError, match="labels do not match images"):
        LabelledFeatures(ones, labels[:3])
    assert knn_predict(train, np.ones((0, 2)), 1).shape == (0,)
