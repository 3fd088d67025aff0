from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from components.dedup.pool.quality import PictureQuality, content, measure, ranks
from perf import keep
from perf.keep_edits import AREA, RGB, decoded, jpeg, png, scaled


def photographs() -> list[RGB]:
    """scikit-image's, of which none was looked at when the numbers of quality.py were chosen."""
    from skimage import data

    chosen = (data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), data.hubble_deep_field())
    return [scaled(np.ascontiguousarray(one), 256 / min(one.shape[:2]), AREA) for one in chosen]


def test_originals_are_kept_for_nearly_all_scripted_edits() -> None:
    *pictures, stranger = photographs()
    files = [png(pictures[0]), jpeg(pictures[1], 95), jpeg(pictures[2], 90), jpeg(pictures[3], 92)]
    found = keep.shares(files, [stranger, *pictures])
    assert found["kept, %"] >= 95  # type: ignore[operator]
    assert found["kept by largest, %"] < 50  # type: ignore[operator]  # what the area alone would have kept
    by_edit: dict[str, float] = found["kept, % by edit"]  # type: ignore[assignment]
    for name in ("JPEG 10", "JPEG 75", "border", "letterbox", "collage of 4", "screenshot", "scaled by 2"):
        assert by_edit[name] == 100.0, name


def test_the_original_wins_among_many_copies_at_once() -> None:
    picture = photographs()[1]
    original = jpeg(picture, 92)
    framed = np.full((picture.shape[0] + 60, picture.shape[1] + 60, 3), 255, np.uint8)
    framed[30:-30, 30:-30] = picture
    files = [jpeg(picture, 10), jpeg(framed, 90), jpeg(scaled(picture, 2, 2), 90), original, png(decoded(original))]
    measured = np.array([[*measure(data, decoded(data))] for data in files])
    assert ranks(measured, np.zeros(len(files), np.int64)).argmax() == 3  # of equal pixels the smaller file
    # In any order, and beside other groups.
    order = np.array([4, 2, 0, 3, 1])
    both = ranks(np.concatenate([measured[order], measured]), np.repeat([1, 0], 5))
    assert both[:5].argmax() == 3
    assert both[5:].argmax() == 3


def test_a_border_is_no_content_and_a_flat_picture_is_all_content() -> None:
    inside = np.random.default_rng(0).integers(0, 256, (80, 60)).astype(np.uint8)
    page = np.full((120, 100), 240, np.uint8)
    page[10:90, 25:85] = inside
    assert content(page) == (10, 90, 25, 85)
    assert content(inside) == (0, 80, 0, 60)
    assert content(np.full((50, 40), 7, np.uint8)) == (0, 50, 0, 40)


def test_any_picture_can_be_measured() -> None:
    for shape in ((1, 1), (1, 700), (9, 3), (2000, 17), (700, 900)):
        rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
        for picture in (rgb, np.zeros_like(rgb)):
            assert np.isfinite([*measure(png(picture), picture)]).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 999))
def test_ranks_are_one_order_that_other_groups_do_not_change(count: int, most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    measured = rng.normal(size=(count, len(PictureQuality._fields))) * 2
    groups = rng.integers(0, most, count)
    score = ranks(measured, groups)
    assert len({*score.tolist()}) == count
    for group in set(groups.tolist()):
        own = np.flatnonzero(groups == group)
        assert score[own].argmax() == ranks(measured[own], np.zeros(len(own), np.int64)).argmax()
