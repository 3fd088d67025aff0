from __future__ import annotations

from components.leftover import too_little

VALUES = {"near-duplicate": "pca_hash.radius 3", "too-small": "decode.min_side 64"}


def test_the_values_that_dropped_the_most_are_named_first() -> None:
    line = too_little("curate", 39, {"too-small": 3, "near-duplicate": 430, "corrupt": 2}, 0.5, VALUES, "params/c.yaml")
    assert line == (
        "curate: 39 of 474 images are left, less than 50% (least_kept): "
        "pca_hash.radius 3 dropped 430 (near-duplicate); "
        "decode.min_side 64 dropped 3 (too-small); 2 are corrupt. The values are in params/c.yaml"
    )


def test_nothing_is_said_where_enough_is_left_or_nothing_came() -> None:
    assert too_little("curate", 50, {"too-small": 50}, 0.5, VALUES, "p") == ""
    assert too_little("curate", 0, {}, 0.5, VALUES, "p") == ""
    assert too_little("curate", 1, {"too-small": 99}, 0.0, VALUES, "p") == ""
    assert "0 of 9" in too_little("curate", 0, {"too-small": 9}, 0.5, VALUES, "p")
