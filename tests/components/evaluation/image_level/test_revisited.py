"""The revisited protocol on cases worked out by hand, and its ground truth read without running code."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.errors import VitrailError
from components.evaluation.image_level.revisited import score, trapezoid_precision
from components.evaluation.sets.revisited_set import load_ground_truth

GND: dict[str, Any] = {
    "imlist": ["a", "b", "c", "d", "e"],
    "qimlist": ["q", "r"],
    "gnd": [
        {"easy": [0], "hard": [3], "junk": [1], "bbx": [1.0, 2.0, 30.0, 40.0]},
        {"easy": [], "hard": [2], "junk": []},
    ],
}


def written(tmp_path: Path, content: Any = GND) -> Path:
    (tmp_path / "gnd.json").write_text(json.dumps(content))
    return tmp_path / "gnd.json"


def test_levels_by_hand(tmp_path: Path) -> None:
    truth = load_ground_truth(written(tmp_path))
    # Query q ranks b, c, a, d, e; query r ranks c first.
    found = score(np.array([[0.7, 0.9, 0.8, 0.6, 0.5], [0.1, 0.2, 0.9, 0.3, 0.0]]), truth)
    # Easy: without b and d the ranking is c, a, e; a at place 1: (0/1 + 1/2) / 2. Query r has nothing easy.
    assert found["easy"].map == pytest.approx(0.25)
    assert found["easy"].queries == 1
    # Medium: c, a, d, e with a and d right: ((0 + 1/2) + (1/2 + 2/3)) / 2 / 2; r is perfect.
    medium = ((0 + 1 / 2) + (1 / 2 + 2 / 3)) / 4
    assert found["medium"].map == pytest.approx((medium + 1) / 2)
    assert found["medium"].precision[1] == pytest.approx((0 + 1) / 2)
    assert found["medium"].precision[5] == pytest.approx((2 / 3 + 1) / 2)  # the last right one is third
    # Hard: without b and a the ranking is c, d, e; d at place 1.
    assert found["hard"].map == pytest.approx((0.25 + 1) / 2)
    assert trapezoid_precision(np.array([0, 1, 2])) == 1.0


def test_the_official_pickle_is_read_as_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "gnd_roxford5k.pkl"
    path.write_bytes(pickle.dumps(GND))
    ours, theirs = load_ground_truth(path), load_ground_truth(written(tmp_path))
    assert ours.database == theirs.database
    assert ours.boxes == [(1.0, 2.0, 30.0, 40.0), None]


def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harmed"),)

    path = tmp_path / "gnd.pkl"
    path.write_bytes(pickle.dumps(GND | {"x": Harm()}))
    with pytest.raises(VitrailError, match=r"cannot be read as plain values \(it names .*mkdir\)"):
        load_ground_truth(path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"imlist": ["a"]}, "not the official layout"),
        ([1], "not the official layout"),
        (GND | {"qimlist": ["q"]}, "1 queries and 2 entries"),
        (GND | {"imlist": ["a", "b"]}, "query q names image 3 of 2"),
        (GND | {"gnd": [{"easy": [0], "hard": [0], "junk": []}, GND["gnd"][1]]}, "marks an image twice"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(VitrailError, match=message):
        load_ground_truth(written(tmp_path, content))


def test_similarities_must_fit(tmp_path: Path) -> None:
    truth = load_ground_truth(written(tmp_path))
    with pytest.raises(VitrailError, match="2 queries and 5 images"):
        score(np.ones((5, 2)), truth)
    with pytest.raises(VitrailError, match="NaN"):
        score(np.full((2, 5), np.nan), truth)
