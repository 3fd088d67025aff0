"""Overlapping boxes of a face detector: which of them stay."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from components.curate.pixels.mtcnn import suppress

Box = tuple[int, int, int, int, float]
CORNERS = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 15), st.integers(1, 15), st.floats(0, 1))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union, pixel by pixel."""
    field = np.zeros((2, 60, 60), bool)
    for layer, (x, y, right, bottom, _) in zip(field, (one, other), strict=True):
        layer[int(y) : int(bottom), int(x) : int(right)] = True
    return float((field[0] & field[1]).sum() / (field[0] | field[1]).sum())


@given(st.lists(CORNERS, max_size=12), st.floats(0.05, 0.95))
def test_what_stays_overlaps_nothing_surer_and_what_goes_overlaps_something_that_stays(
    drawn: list[Box], most: float
) -> None:
    boxes = np.array([(x, y, x + w, y + h, s) for x, y, w, h, s in drawn], np.float32).reshape(-1, 5)
    kept = suppress(boxes, most)
    assert list(boxes[kept, 4]) == sorted(boxes[kept, 4], reverse=True)
    for place, row in enumerate(kept):
        assert all(overlap(boxes[row], boxes[above]) <= most + 1e-6 for above in kept[:place])
    for row in set(range(len(boxes))) - set(kept.tolist()):
        assert any(overlap(boxes[row], boxes[k]) > most - 1e-6 and boxes[k, 4] >= boxes[row, 4] for k in kept)
