"""Draws of a few images a class are repeatable, complete, and say how small the smallest class was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.image_level.few_shot import FewShotParams, draw, few_shot, mean_interval
from components.evaluation.image_level.knn import knn_predict
from components.evaluation.image_level.linear import fit


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(0, 100))
def test_a_draw_holds_so_many_of_each_class_or_all_there_are(count: int, seed: int) -> None:
    labels = np.repeat([0, 2, 5], [1, 7, 20])
    rows = draw(labels, count, [seed])
    assert np.bincount(labels[rows], minlength=6)[[0, 2, 5]].tolist() == [min(count, n) for n in (1, 7, 20)]
    assert (np.diff(rows) > 0).all()
    assert (rows == draw(labels, count, [seed])).all()


def test_with_all_images_it_is_the_plain_vote_and_the_plain_probe_without_doubt() -> None:
    from sklearn.metrics import balanced_accuracy_score

    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 20)
    train, test = generator.normal(size=(40, 4)) + labels[:, None], generator.normal(size=(30, 4))
    truth = (generator.random(30) < 0.3).astype(int)
    params = FewShotParams(per_class=[3, 20], tries=3, k=5, cost=0.1)
    found = few_shot(LabelledFeatures(train, labels), LabelledFeatures(test, truth), params)
    whole = {
        "knn5": knn_predict(LabelledFeatures(train, labels), test, 5),
        "linear": fit(train, labels, 0.1, 300).predict(test),
    }
    for name, predicted in whole.items():
        assert found[name, 20].accuracy == (pytest.approx((predicted == truth).mean()),) * 3
        assert found[name, 20].balanced == (pytest.approx(balanced_accuracy_score(truth, predicted)),) * 3
        assert found[name, 20].fewest == 20
        assert found[name, 3].accuracy.low <= found[name, 3].accuracy.value <= found[name, 3].accuracy.high
    few = few_shot(
        LabelledFeatures(train[:3], labels[:3]), LabelledFeatures(test, truth), FewShotParams(per_class=[5], tries=2)
    )
    assert {key: one.fewest for key, one in few.items()} == {("knn20", 5): 1}  # without a cost no probe


def test_of_one_class_alone_the_probe_knows_nothing_else() -> None:
    train, test = (
        LabelledFeatures(np.ones((3, 2)), np.array([1, 1, 1])),
        LabelledFeatures(np.ones((4, 2)), np.array([0, 1, 1, 1])),
    )
    found = few_shot(train, test, FewShotParams(per_class=[2], tries=2, cost=1.0))
    assert [one.accuracy.value for one in found.values()] == [0.75, 0.75]
    assert found["linear", 2].balanced.value == 0.5


def test_the_interval_is_students() -> None:
    from scipy import stats

    values = [0.5, 0.6, 0.55, 0.7]
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values)[1:] == pytest.approx((theirs.low, theirs.high))
