from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.dedup.copy_graph.calibrate import CalibrationParams, calibrate, nearest_differing
from components.dedup.decisions import retrieve as retrieval
from components.dedup.decisions.reference import held_out_index, nearest_held_out, one_ended
from components.dedup.decisions.retrieve import ClusterParams, RetrievalParams, SampleParams, retrieve
from components.dedup.pool.extract import check_described, describe_pictures, gathered
from components.descriptors.kinds import (
    DiscriminantDescriptorParams,
    SscdParams,
    ThumbnailParams,
    TrainedParams,
    learn,
    load_descriptor,
    thumbnail_side,
)
from components.descriptors.train_params import DescriptorTrainingParams, NetworkParams
from components.descriptors.views import Views, squash
from components.descriptors.whiten import fit_whitening
from components.errors import VitrailError
from components.images.samples import RGB
from components.neighbours import NeighbourParams, kmeans
from components.storage import StorageParams

STORAGE = StorageParams(root="data")
N = NeighbourParams()


def picture(seed: int, side: int = 72) -> RGB:
    """A smooth random picture, as unlike another seed's as two photographs."""
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def unit(rows: object) -> np.ndarray:
    array = np.asarray(rows, np.float32)
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "params",
    [
        ThumbnailParams(kind="thumbnail", dim=16),
        DiscriminantDescriptorParams(kind="discriminant"),
        TrainedParams(
            kind="trained",
            network=NetworkParams(side=32, width=8, dim=16),
            training=DescriptorTrainingParams(steps=3, batch=8),
        ),
    ],
    ids=lambda p: p.kind,
)
def test_learned_descriptors_are_unit_rows_and_come_back_the_same(params: object, tmp_path: Path) -> None:
    pictures = np.stack([squash(picture(i), thumbnail_side(params)) for i in range(24)])  # type: ignore[arg-type]
    for name in "ab":
        learn(params, pictures, tmp_path / name)  # type: ignore[arg-type]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()  # same pool, same descriptor
    descriptor = load_descriptor(params, tmp_path / "a", STORAGE)  # type: ignore[arg-type]
    rows = describe_pictures(descriptor, [picture(i) for i in range(24)])
    assert rows.shape == (24, 1, descriptor.dim)
    assert rows.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float32), axis=2), 1, atol=1e-3)


def test_the_discriminant_descriptor_with_windows_finds_crops(tmp_path: Path) -> None:
    params = DiscriminantDescriptorParams(kind="discriminant")
    pictures = [picture(i) for i in range(40)]
    learn(params, np.stack([squash(p, 96) for p in pictures]), tmp_path / "w")
    descriptor = load_descriptor(params, tmp_path / "w", STORAGE)
    base = describe_pictures(descriptor, pictures, Views(((0.9, 3),))).astype(np.float32)
    cropped = describe_pictures(descriptor, [p[5:69, 3:67] for p in pictures])[:, 0].astype(np.float32)
    cosine = np.einsum("nrd,md->nrm", base, cropped)
    assert (cosine.max(1).argmax(0) == np.arange(40)).all()
    assert np.diag(cosine.max(1)).mean() > np.diag(cosine[:, 0]).mean()  # windows are nearer than the whole


def test_windows_lie_inside_and_begin_with_the_whole() -> None:
    rgb = picture(0)
    found = Views(((0.5, 2), (0.9, 1))).of(rgb)
    assert [w.shape[:2] for w in found] == [(72, 72)] + [(36, 36)] * 4 + [(65, 65)]
    assert np.array_equal(found[4], rgb[36:, 36:])
    views = Views(((0.5, 2), (0.9, 1)), flip=True)
    assert np.array_equal(views.of(rgb)[6], rgb[:, ::-1])
    assert len(views) == len(views.of(rgb)) == 7
    assert [views.name(view) for view in (0, 3, 5, 6)] == [
        "whole",
        "crop to 0.5 of each side, row 2 and column 1 of 2",
        "crop to 0.9 of each side, row 1 and column 1 of 1",
        "mirrored",
    ]


def test_all_alike_pictures_stay_alike(tmp_path: Path) -> None:
    alike = np.stack([squash(picture(1), 16)] * 5)
    params = ThumbnailParams(kind="thumbnail")
    learn(params, alike, tmp_path / "w")
    rows = load_descriptor(params, tmp_path / "w", STORAGE).embed(list(alike))
    np.testing.assert_allclose(rows @ rows.T, 1, atol=1e-5)
    flat = np.full((4, 96, 96, 3), 7, np.uint8)
    discriminant = DiscriminantDescriptorParams(kind="discriminant")
    learn(discriminant, flat, tmp_path / "d")
    rows = describe_pictures(load_descriptor(discriminant, tmp_path / "d", STORAGE), flat)
    assert not rows.any()  # one flat colour has no direction, and is no copy of another for that
    with pytest.raises(VitrailError, match=r"image k0: its copy descriptor is all zeros.*those of 3 others of 4"):
        check_described(rows, "image k{}".format)


def test_one_picture_cannot_be_learned_from(tmp_path: Path) -> None:
    one = picture(0)[None]
    with pytest.raises(VitrailError, match=r"1 image\(s\)"):
        learn(DiscriminantDescriptorParams(kind="discriminant"), one, tmp_path / "w")
    with pytest.raises(VitrailError, match=r"1 image\(s\)"):
        learn(TrainedParams(kind="trained"), one, tmp_path / "w")


def test_whitening_refuses_nan_and_decorrelates() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 6)) @ np.diag([9, 5, 3, 2, 1, 1])
    whitening = fit_whitening(rows, 6, 0.0)
    white = (rows.astype(np.float32) - whitening.mean) @ whitening.projection
    np.testing.assert_allclose(np.cov(white, rowvar=False, bias=True), np.eye(6), atol=1e-3)
    rows[3, 2] = np.nan
    with pytest.raises(VitrailError, match="row 3 is NaN"):
        fit_whitening(rows, 6, 0.0)


def test_sscd_torchscript_is_loaded_and_fed_imagenet_normalised_pixels(tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    path = tmp_path / "sscd.pt"
    torch.jit.script(Mean()).save(str(path))
    descriptor = load_descriptor(SscdParams(kind="sscd", path=str(path), side=32), Path(), STORAGE)
    assert descriptor.prepare(picture(0, 72)[:, :36]).shape == (64, 32, 3)  # the short side is 32
    rgb = np.full((32, 32, 3), 200, np.uint8)
    expected = (200 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(descriptor.embed([rgb])[0], unit(expected), atol=1e-5)
    (tmp_path / "bad.pt").write_bytes(b"no network")
    with pytest.raises(VitrailError, match="not SSCD's TorchScript"):
        load_descriptor(SscdParams(kind="sscd", path=str(tmp_path / "bad.pt")), Path(), STORAGE)
    with pytest.raises(VitrailError, match="No such file or directory"):
        load_descriptor(SscdParams(kind="sscd", path=str(tmp_path / "none.pt")), Path(), STORAGE)


def test_known_to_differ_needs_another_label_and_distance() -> None:
    rows = unit([[[1, 0]], [[1, 0.1]], [[1, 0.2]], [[0, 1]]])
    labels = {"kind": np.array([0, 0, 1, 1])}
    differing, nearest = nearest_differing(rows, labels, np.arange(4), 0)
    cosine = rows[:, 0] @ rows[:, 0].T
    np.testing.assert_allclose(differing, [cosine[0, 2], cosine[1, 2], cosine[1, 2], cosine[1, 3]], atol=1e-6)
    np.testing.assert_allclose(nearest, [cosine[0, 1], cosine[1, 2], cosine[2, 1], cosine[3, 2]], atol=1e-6)
    differing, _ = nearest_differing(rows, labels, np.arange(4), 2)
    np.testing.assert_allclose(differing, [cosine[0, 2], cosine[1, 3], cosine[2, 0], cosine[3, 1]], atol=1e-6)
    with pytest.raises(VitrailError, match=r"lower calibration\.apart"):
        nearest_differing(rows, labels, np.arange(4), 99)


def test_thresholds_keep_to_the_allowed_share() -> None:
    differing = np.linspace(0, 0.5, 1000, dtype=np.float32)
    params = CalibrationParams(benchmark="x", least=0.0, false_match_self=0.02, false_match_relative=0.1)
    found = calibrate({"exact": np.ones(5, np.float32)}, differing, differing, params)
    assert (differing > found.threshold_self).mean() <= 0.02
    assert (differing > found.threshold_relative).mean() <= 0.1
    assert found.threshold_relative < found.threshold_self
    assert found.summary()["self"]["recall"] == {"exact": 1.0}
    assert "exact" in found.table()


def test_leaks_are_looked_for_in_the_views_of_both_sides() -> None:
    east, north, up = np.eye(3, dtype=np.float32)
    pool = np.stack([[east, east], [north, up], [up, east]])  # whole, window
    held = np.stack([[up, north]])
    found = nearest_held_out(pool, held_out_index(held, 0.5, N))
    # row 1: its whole equals the held-out image's window, its window the held-out whole; row 2 the whole
    assert (found.similarity > 0.5).tolist() == [False, True, True]
    assert found.reference.tolist() == [0, 0, 0]
    assert [*zip(found.view, found.match_view, strict=True)][1:] == [(0, 1), (0, 0)]


def test_many_held_out_images_are_searched_by_an_index_set_for_one_end() -> None:
    rng = np.random.default_rng(0)
    held = unit(rng.normal(size=(4000, 2, 16)))
    pool = unit(rng.normal(size=(300, 2, 16)))
    pool[:100, 0] = unit(held[:100, 0] + 0.05 * rng.normal(size=(100, 16)))
    exact = nearest_held_out(pool, held_out_index(held, 0.9, N))
    params = NeighbourParams(exact_held_out=1000, flat_up_to=1000, pq_bytes=4)
    found = nearest_held_out(pool, held_out_index(held, 0.9, params))
    leaks, wanted = found.similarity > 0.9, exact.similarity > 0.9
    assert wanted[:100].mean() > 0.9
    assert (leaks & wanted).sum() >= 0.95 * wanted.sum()
    assert not (leaks & ~wanted).any()  # similarities are exact, so nothing leaks that should not
    both = found.reference == exact.reference
    np.testing.assert_allclose(found.similarity[both], exact.similarity[both], atol=1e-5)
    set_for = one_ended(5000, 0.45, params)
    assert set_for.edge_cosine == 0.45
    assert 1 - (1 - set_for.edge_recall) ** 0.5 == pytest.approx(0.95)
    assert one_ended(1000, 0.45, params).factory == "Flat"


def sampled(how: SampleParams, least: float = -1.0) -> RetrievalParams:
    return RetrievalParams(queries=["x"], how=how, min_similarity=least)


def test_retrieval_by_sample() -> None:
    pool = unit(np.eye(6) + 0.01)
    queries = {"x": pool[[1, 1, 2]]}
    found, brought = retrieve(pool, queries, sampled(SampleParams(kind="sample", k=1, collisions="multiset")), N)
    assert found.times.tolist() == [0, 2, 1, 0, 0, 0]
    assert found.query[2] == 2
    assert brought == [("x", 3, 3, 2)]
    found, brought = retrieve(pool, queries, sampled(SampleParams(kind="sample", k=1)), N)
    assert found.times.tolist() == [0, 1, 1, 0, 0, 0]
    assert brought == [("x", 3, 2, 2)]
    found, _ = retrieve(pool, queries, sampled(SampleParams(kind="sample", k=6), 0.5), N)
    assert found.times.tolist() == [0, 1, 1, 0, 0, 0]
    with pytest.raises(VitrailError, match="only 6 images"):
        retrieve(pool, queries, sampled(SampleParams(kind="sample", k=7)), N)


def test_each_data_set_is_retrieved_in_its_own_way() -> None:
    pool = unit(np.eye(6) + 0.01)
    queries = {"x": pool[[1, 1]], "y": pool[[1, 4]]}
    how = sampled(SampleParams(kind="sample", k=1, collisions="multiset"))
    how = how.model_copy(update={"per_set": {"y": SampleParams(kind="sample", k=2)}})
    found, brought = retrieve(pool, queries, how, N)
    assert [line.name for line in brought] == ["x", "y"]
    assert brought[0][1:] == (2, 2, 1)
    assert brought[1].queries == 2
    assert found.times[1] == 3  # twice by x, once by y
    assert found.query[1] in (0, 1)  # as close to both of x, and x comes first
    assert found.query[4] == 3  # query numbers run through both sets
    assert {name: rows[rows != 1].tolist() for name, rows in found.sources.items()} == {
        "x": [],
        "y": np.setdiff1d(np.flatnonzero(found.times), [1]).tolist(),
    }
    assert all(1 in rows for rows in found.sources.values())  # brought by both, credited to the closest


def test_sets_that_ask_for_the_same_clusters_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(retrieval, "kmeans", lambda *args, **kwargs: (made.append(1), kmeans(*args, **kwargs))[1])
    pool = unit(np.random.default_rng(0).normal(size=(60, 5)))
    alike = ClusterParams(kind="cluster", clusters=4, hits=0, cap=20)
    per_set = {"b": alike.model_copy(update={"cap": 3}), "c": alike.model_copy(update={"seed": 1})}
    how = RetrievalParams(queries=["a", "b", "c"], how=alike, per_set=per_set)
    _, brought = retrieve(pool, dict.fromkeys("abc", pool[:9]), how, N)
    assert len(made) == 2
    assert [line.selected for line in brought][:2] == [20, 3]


def test_a_cosine_to_a_query_is_not_compared_with_one_to_a_centre() -> None:
    # Image 0 is closer to its cluster's centre than to anything else, and the query by sample is closer than the one
    # that its cluster was found by: it belongs to the query by sample.
    pool = unit([[1, 0, 0], [1, 0.1, 0], [1, -0.1, 0], [0, 0, 1], [0, 0.1, 1]])
    by_cluster, by_sample = unit([[1, 0.9, 0]]), unit([[1, 0.3, 0]])
    how = RetrievalParams(
        queries=["c", "s"],
        how=ClusterParams(kind="cluster", clusters=2, hits=0),
        per_set={"s": SampleParams(kind="sample", k=3)},
    )
    found, _ = retrieve(pool, {"c": by_cluster, "s": by_sample}, how, N)
    assert found.query[:3].tolist() == [1, 1, 1]
    np.testing.assert_allclose(found.similarity[:3], pool[:3] @ by_sample[0], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 4), st.integers(0, 999))
def test_next_neighbours_are_shared_by_nobody(count: int, asked: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool, queries = unit(rng.normal(size=(count, 5))), unit(rng.normal(size=(asked, 5)))
    k = min(k, count)
    how = sampled(SampleParams(kind="sample", k=k, collisions="next_neighbour"))
    found, _ = retrieve(pool, {"x": queries}, how, N)
    held = np.bincount(found.query[found.times > 0], minlength=asked)
    assert found.times.max() == 1
    assert held.max() <= k
    assert held.sum() == min(
        count, asked * k
    )  # exactly images times k, as the paper's counts are, if the pool has them
    cosine = queries @ pool.T
    rows = np.flatnonzero(found.times)
    np.testing.assert_allclose(found.similarity[rows], cosine[found.query[rows], rows], atol=1e-5)
    # Stable: who is closer to an image than its owner, or wants a free one, has k images that are closer still.
    nearness = np.where(found.times > 0, found.similarity, -np.inf)
    for query in range(asked):
        own = cosine[query, found.query == query]
        wanted = cosine[query] > nearness + 1e-5
        assert not wanted.any() or (len(own) == k and own.min() > cosine[query, wanted].max() - 1e-5)


def test_next_neighbours_stop_at_the_least_similarity() -> None:
    pool = unit(np.eye(6) + 0.01)
    how = sampled(SampleParams(kind="sample", k=2, collisions="next_neighbour"), 0.5)
    found, _ = retrieve(pool, {"x": pool[[1, 1, 2]]}, how, N)
    assert found.times.tolist() == [0, 1, 1, 0, 0, 0]
    assert found.query[[1, 2]].tolist() == [0, 2]


def test_retrieval_by_cluster_needs_hits_and_keeps_the_cap() -> None:
    rng = np.random.default_rng(0)
    centre = np.repeat(np.arange(3), 20)
    pool = unit(np.eye(8)[centre] + 0.05 * rng.normal(size=(60, 8)))
    queries = np.concatenate([pool[:5], pool[20:22]])  # five of cluster 0, two of cluster 1, none of cluster 2
    how = ClusterParams(kind="cluster", clusters=3, hits=3, per_cluster=15, cap=10)
    found, brought = retrieve(pool, {"x": queries}, RetrievalParams(queries=["x"], how=how), N)
    assert found.times.sum() == 10 == brought[0].found
    assert set(centre[found.times > 0].tolist()) == {0}
    assert set(found.query[found.times > 0].tolist()) <= set(range(5))
    taken = np.flatnonzero(found.times)
    np.testing.assert_allclose(found.similarity[taken], (pool[taken] * queries[found.query[taken]]).sum(1), atol=1e-6)
    assert np.array_equal(found.sources["x"], taken)
    wrong = RetrievalParams(queries=["x"], how=how.model_copy(update={"clusters": 61}))
    with pytest.raises(VitrailError, match="only 60 images"):
        retrieve(pool, {"x": queries}, wrong, N)


def test_rows_gathered_on_disk_are_the_rows_asked_for(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.float16).reshape(10, 2, 3)
    which = np.array([7, 0, 3, 9, 9])
    found = gathered(rows[:, 0], which, tmp_path / "some.npy", block=2)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, rows[which, 0])
    assert gathered(rows, which[:0], tmp_path / "none.npy").shape == (0, 2, 3)
