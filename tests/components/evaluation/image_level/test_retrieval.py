"""Retrieval agrees with scikit-learn, micro-AP with a ranking by hand; order of files decides nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import VitrailError
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.image_level import retrieval
from components.evaluation.image_level.retrieval import (
    RankingParams,
    average_precision,
    copy_precision,
    figures,
    micro_ap,
    retrieve,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_scikit_learns_with_ties_too(pairs: list[tuple[int, bool]]) -> None:
    from sklearn.metrics import average_precision_score

    scores, right = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    if right.any():
        assert average_precision(scores, right) == pytest.approx(average_precision_score(right, scores))


def test_by_hand() -> None:
    database = np.array([[1, 0], [0.9, 0.1], [0, 1], [-1, 0]], float)
    queries = LabelledFeatures(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0, 0, 7]))
    found = retrieve(queries, LabelledFeatures(database, np.array([1, 0, 0, 1])))
    # Query 0 finds images 0, 1, 2, 3 in this order; 1 and 2 are right: (1/2 + 2/3) / 2. Query 1 finds 2, 1 first.
    assert found.precision.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1.0])
    assert found.rank.tolist() == [2, 1]
    assert found.without == 1  # nothing has label 7
    values = figures(found, RankingParams(ranks=[1, 2], samples=100))
    assert values["recall1"].value == 0.5
    assert values["recall2"].value == 1.0
    assert values["map"].low <= values["map"].value <= values["map"].high


def test_when_all_similarities_are_equal_the_order_decides_nothing() -> None:
    same, labels = np.ones((6, 3)), np.array([0, 1, 1, 1, 1, 1])
    for order in (np.arange(6), np.arange(6)[::-1]):
        found = retrieve(LabelledFeatures(same[:1], np.array([0])), LabelledFeatures(same, labels[order]))
        assert found.precision[0] == pytest.approx(1 / 6)  # the share of right images
        assert found.rank[0] == 6


def test_micro_ap_is_one_ranking_of_all_pairs() -> None:
    scores = np.array([[0.9, 0.2], [0.8, 0.1], [0.3, 0.7]])
    # In order: (0,0) right, (1,0) wrong, (2,1) right -> (1 + 2/3) / 2
    assert micro_ap(scores, [(0, 0), (2, 1)]) == pytest.approx((1 + 2 / 3) / 2)
    assert micro_ap(np.ones((4, 5)), [(1, 1), (2, 2)]) == pytest.approx(2 / 20)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_it_needs_no_table_of_all_pairs(seed: int, true: int) -> None:
    generator = np.random.default_rng(seed)
    queries, references = (generator.integers(-1, 2, (rows, 3)).astype(np.float32) for rows in (7, 9))
    pairs = [(int(at) // 9, int(at) % 9) for at in generator.permutation(63)[:true]]
    expected = micro_ap(queries @ references.T, pairs)
    for block in (1, 20, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retrieval, "BLOCK", block)
            assert copy_precision(queries, references, pairs) == pytest.approx(expected)


def test_faults_are_named() -> None:
    ones = np.ones((2, 2))
    database = LabelledFeatures(ones, np.array([0, 1]))
    with pytest.raises(VitrailError, match="no query has an image of its label"):
        retrieve(LabelledFeatures(ones, np.array([5, 6])), database)
    with pytest.raises(VitrailError, match="NaN"):
        retrieve(LabelledFeatures(ones * np.nan, np.array([0, 1])), database)
    for pairs, message in (([], "at least one"), ([(0, 0), (0, 0)], "only once"), ([(0, 9)], "beyond")):
        with pytest.raises(VitrailError, match=message):
            micro_ap(ones, pairs)
