"""Draws of a few images a class are repeatable, complete, and say how small the smallest class was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.evaluation.few_shot import FewShotParams, Labelled, draw, few_shot, mean_interval
from components.evaluation.knn import knn_predict


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(0, 100))
def test_a_draw_holds_so_many_of_each_class_or_all_there_are(count: int, seed: int) -> None:
    labels = np.repeat([0, 2, 5], [1, 7, 20])
    rows = draw(labels, count, [seed])
    assert np.bincount(labels[rows], minlength=6)[[0, 2, 5]].tolist() == [min(count, n) for n in (1, 7, 20)]
    assert (np.diff(rows) > 0).all()
    assert (rows == draw(labels, count, [seed])).all()


def test_with_all_images_it_is_the_plain_vote_without_doubt() -> None:
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 20)
    train, test = generator.normal(size=(40, 4)) + labels[:, None], generator.normal(size=(30, 4))
    truth = generator.integers(0, 2, 30)
    found = few_shot(Labelled(train, labels), Labelled(test, truth), FewShotParams(per_class=[3, 20], tries=3, k=5))
    whole = (knn_predict(train, labels, test, 5) == truth).mean()
    assert found[20].accuracy == (pytest.approx(whole),) * 3
    assert found[20].fewest == 20
    assert found[3].accuracy.low <= found[3].accuracy.value <= found[3].accuracy.high
    few = few_shot(Labelled(train[:3], labels[:3]), Labelled(test, truth), FewShotParams(per_class=[5], tries=2))
    assert few[5].fewest == 1


def test_the_interval_is_students() -> None:
    from scipy import stats

    values = [0.5, 0.6, 0.55, 0.7]
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values)[1:] == pytest.approx((theirs.low, theirs.high))
