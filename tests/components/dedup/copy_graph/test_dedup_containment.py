"""What a collage contains is not joined by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from components.dedup.copy_graph.containment import small_windows, split
from components.dedup.copy_graph.edges import Edges
from components.dedup.copy_graph.graph import components
from components.dedup.decisions.decide import SELF_DUPLICATE
from components.descriptors.views import Views
from components.evaluation.sets.benchmarks import BenchmarksFile
from components.images.decode import encode_jpeg
from components.tables.parts import read_table
from components.tables.schemas import DECISIONS
from tests.components.dedup.dedup_pool import curate, picture, plain, run

SMALL = np.array([2])
Edge = tuple[int, int, int]  # image, image, view of the second: 0 the whole, 1 a large window, 2 a small one


def of(*edges: Edge) -> Edges:
    a, b, view = (np.array([edge[n] for edge in edges], np.int64) for n in range(3))
    turned = a > b
    zero = np.zeros(len(a), np.int64)
    views = [np.where(turned, view, zero).astype(np.int16), np.where(turned, zero, view).astype(np.int16)]
    return Edges(np.minimum(a, b), np.maximum(a, b), np.full(len(a), 0.9, np.float32), *views)


def settled(count: int, edges: Edges, better: list[int]) -> tuple[list[int], list[int]]:
    """Components, and the rows that are kept; ``better``: all rows, the best first."""
    labels = components(count, [edges], 0.5)
    while True:
        kept = np.arange(count)
        for row in reversed(better):
            kept[labels[row]] = row
        parts = split(labels, kept, [edges], 0.5, SMALL)
        if parts is None:
            return labels.tolist(), sorted({int(kept[label]) for label in labels})
        labels = parts


def test_both_originals_of_a_collage_stay_and_the_collage_goes() -> None:
    labels, kept = settled(4, of((0, 2, 2), (1, 2, 2)), [0, 1, 2, 3])
    assert kept == [0, 1, 3]
    assert labels == [0, 1, 0, 3]


def test_a_collage_that_is_kept_stands_for_what_it_contains() -> None:
    assert settled(3, of((0, 2, 2), (1, 2, 2)), [2, 0, 1])[1] == [2]


def test_crops_of_crops_go_for_the_original() -> None:
    assert settled(4, of((1, 0, 2), (2, 1, 2), (3, 0, 2)), [0, 1, 2, 3])[1] == [0]


def test_copies_of_an_original_count_as_the_original() -> None:
    # 0 and 3 show the same; 1 is a crop of 3; 2, a collage, contains 0 and 4
    labels, kept = settled(5, of((0, 3, 0), (1, 3, 2), (0, 2, 2), (4, 2, 2)), [0, 1, 2, 3, 4])
    assert kept == [0, 4]
    assert labels == [0, 0, 0, 0, 4]


def test_a_large_window_is_nearly_the_image_itself() -> None:
    assert settled(3, of((0, 2, 1), (1, 2, 1)), [0, 1, 2])[1] == [0]


def test_collages_of_collages_are_split_until_nothing_is_held_by_one_alone() -> None:
    # 5 holds 0 and 1; 6 holds 1 and 2; 7 holds 2 and 3
    edges = of((0, 5, 2), (1, 5, 2), (1, 6, 2), (2, 6, 2), (2, 7, 2), (3, 7, 2))
    assert settled(8, edges, list(range(8)))[1] == [0, 1, 2, 3, 4]


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 12), st.data())
def test_components_are_a_partition_and_what_goes_is_tied_to_what_stays(count: int, data: st.DataObject) -> None:
    row = st.integers(0, count - 1)
    drawn = data.draw(st.lists(st.tuples(row, row, st.integers(0, 2)), min_size=1, max_size=20))
    pairs = {(min(a, b), max(a, b)): (a, b, view) for a, b, view in drawn if a != b}
    if not pairs:
        return
    edges = of(*pairs.values())
    before = components(count, [edges], 0.5)
    labels, kept = settled(count, edges, data.draw(st.permutations(range(count))))
    assert all(labels[label] == label and label <= row for row, label in enumerate(labels))
    assert {labels[row] for row in kept} == set(labels)
    assert len(kept) == len(set(labels))
    assert all(before[row] == before[label] for row, label in enumerate(labels))
    inside = [(a, b) for a, b, _ in pairs.values() if labels[a] == labels[b]]
    for row in set(range(count)) - set(kept):
        assert any(row in pair for pair in inside)
    if not any(view == 2 for _, _, view in pairs.values()):
        assert labels == before.tolist()


def test_windows_of_less_than_half_the_area_are_small() -> None:
    assert small_windows(Views(((0.9, 2), (0.5, 2), (0.7, 1)), flip=True)).tolist() == [5, 6, 7, 8, 9]
    assert not len(small_windows(Views(((0.93, 2), (0.85, 3)), flip=True)))


def test_the_stage_keeps_all_originals_of_a_collage(tmp_path: Path, recorder: object, unchecked: None) -> None:
    parts = [picture(seed) for seed in range(4)]
    collage = np.concatenate([np.concatenate(parts[:2], 1), np.concatenate(parts[2:], 1)])
    made = {f"plain{n}": encode_jpeg(part, 90) for n, part in enumerate(parts)} | {"whole": encode_jpeg(collage, 90)}
    curated = curate(tmp_path / "curate", made)
    none = BenchmarksFile(benchmarks={})
    run(tmp_path, curated, none, plain(windows=[(0.5, 2)], graph={"keep": "oldest"}))
    decided = read_table(tmp_path / "dedup/decisions", DECISIONS).to_pylist()
    assert [row["reason"] for row in decided] == ["pool"] * 4 + [SELF_DUPLICATE]
    assert {decided[4]["view"], decided[4]["match_view"]} > {0}
