from __future__ import annotations

import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import VitrailError
from components.neighbours import (
    IndexFolder,
    KMeans,
    NeighbourParams,
    Neighbours,
    exact_knn,
    expected_recall,
    factory_for,
    kmeans,
    knn,
    probes_for,
)
from components.neighbours import index as indexes
from components.neighbours.search import build_index


def unit(rng: np.random.Generator, count: int, dim: int, dtype: type = np.float32) -> np.ndarray:
    rows = rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(2, 24), st.integers(0, 999), st.data())
def test_flat_is_brute_force(count: int, asked: int, dim: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    base, queries = unit(rng, count, dim, np.float16), unit(rng, asked, dim, np.float16)
    k = data.draw(st.integers(1, count))
    similarities, rows = knn(base, queries, k, NeighbourParams(block=7))
    exact = queries.astype(np.float32) @ base.astype(np.float32).T
    np.testing.assert_allclose(similarities, -np.sort(-exact, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, rows, axis=1), similarities, atol=1e-6)
    assert all(len(set(row)) == k for row in rows.tolist())


def test_reading_in_blocks_finds_what_reading_at_once_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.neighbours.search.ROWS", 7)
    rng = np.random.default_rng(0)
    base, queries = unit(rng, 40, 6, np.float16), unit(rng, 5, 6, np.float16)
    for k in (1, 9, 40):
        for ours, theirs in zip(
            exact_knn(base, queries, k, NeighbourParams()), knn(base, queries, k, NeighbourParams()), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_equal_similarities_come_by_row() -> None:
    base = np.repeat(unit(np.random.default_rng(0), 1, 8), 5, axis=0)
    _, rows = knn(base, base[:2], 5, NeighbourParams())
    assert rows.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("factory", ["IVF4,PQ1", "IVF16,Flat", "OPQ4_8,IVF4_HNSW32,PQ4x4"])
def test_coded_candidates_carry_exact_similarities(factory: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "base.npy"
    np.save(path, unit(rng, 10_000, 8, np.float16))
    base = np.load(path, mmap_mode="r")
    noisy = base[:50].astype(np.float32) + 0.05 * unit(rng, 50, 8)
    queries = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    similarities, rows = knn(base, queries, 5, NeighbourParams(factory=factory, nprobe=16, candidates=100, block=16))
    assert (rows[:, 0] == np.arange(50)).mean() >= 0.98  # the planted neighbour is found
    found = rows >= 0
    exact = queries @ base.astype(np.float32).T
    np.testing.assert_allclose(similarities[found], np.take_along_axis(exact, rows, 1)[found], atol=1e-5)


def test_the_index_grows_with_the_set() -> None:
    params = NeighbourParams(flat_up_to=1000)
    assert factory_for(1000, 512, params, gpu=False) == "Flat"
    assert factory_for(500_000, 512, params, gpu=False) == "IVF512,PQ64x4"
    assert factory_for(1_000_000, 512, params, gpu=True) == "IVF1024,PQ32"
    assert factory_for(20_000_000, 512, params, gpu=False) == "IVF65536_HNSW32,PQ64x4"
    rotated = NeighbourParams(flat_up_to=1000, opq_dim=256, pq_bytes=64, pq_bits=8)
    assert factory_for(10**9, 512, rotated, gpu=False) == "OPQ64_256,IVF1048576_HNSW32,PQ64"
    assert factory_for(10**9, 512, rotated, gpu=True) == "OPQ64_256,IVF1048576,PQ64"
    assert probes_for("Flat", params) == 0
    assert 95 <= probes_for("IVF1024,PQ64x4", params) <= 105  # a tenth, as measured (docs/dedup.md)
    assert 1500 <= probes_for("IVF65536_HNSW32,PQ64x4", params) <= 1800  # a fortieth
    assert probes_for("IVF65536,PQ64", NeighbourParams(nprobe=5000), gpu=True) == 2048
    assert probes_for("IVF4,PQ64", NeighbourParams(nprobe=5000)) == 4


@pytest.mark.parametrize(("lists", "share"), [(256, 0.1), (4096, 0.02), (4096, 0.1)])
def test_expected_recall_is_that_of_rows_and_centres_drawn(lists: int, share: float) -> None:
    rng = np.random.default_rng(lists)
    centres, one, other = (unit(rng, count, 128) for count in (lists, 1000, 1000))
    other -= (other * one).sum(1, keepdims=True) * one
    other = 0.6 * one + 0.8 * other / np.linalg.norm(other, axis=1, keepdims=True)
    found = np.zeros(1000, bool)
    for a, b in ((one @ centres.T, other @ centres.T), (other @ centres.T, one @ centres.T)):
        own = np.take_along_axis(b, a.argmax(1)[:, None], 1)  # the score with the list that the other end is in
        found |= (b > own).sum(1) < share * lists
    expected = expected_recall(lists, round(share * lists), 0.6)
    assert abs(found.mean() - expected) < 0.05
    assert expected_recall(lists, lists, 0.6) == 1


def test_probes_grow_with_the_lists_so_that_recall_stays() -> None:
    params = NeighbourParams()
    for lists in (1 << 10, 1 << 16, 1 << 18, 1 << 20):
        probes = probes_for(f"IVF{lists}_HNSW32,PQ64x4", params)
        assert 0.95 <= expected_recall(lists, probes, 0.6) < 0.952
        assert expected_recall(lists, probes - 1, 0.6) < 0.95
    assert expected_recall(1 << 16, 256, 0.6) < 0.75  # what a fixed number of lists came to
    more = params.model_copy(update={"edge_recall": 0.99})
    assert probes_for("IVF65536,PQ64", more) > probes_for("IVF65536,PQ64", params)


class FakeGpu:
    """FAISS as far as components/neighbours/index.py asks it on a machine with a GPU; records what it is told."""

    def __init__(self) -> None:
        class IndexPreTransform:
            def __init__(self, index: object) -> None:
                self.index = index

        class IndexIVF: ...

        class GpuIndexIVFPQ: ...

        class IndexShards: ...

        self.IndexPreTransform, self.IndexIVF, self.IndexIVFPQ = IndexPreTransform, IndexIVF, IndexIVF
        self.GpuIndexIVFPQ, self.IndexShards, self.IndexFlat = GpuIndexIVFPQ, IndexShards, IndexShards
        self.told: list[tuple[object, str, int]] = []

    def downcast_index(self, index: object) -> object:
        return index

    def GpuParameterSpace(self) -> FakeGpu:
        return self

    def set_index_parameter(self, index: object, name: str, value: int) -> None:
        self.told.append((index, name, value))

    def index_gpu_to_cpu(self, index: object) -> tuple[str, object]:
        return "on the host", index


def test_lists_on_a_gpu_below_a_rotation_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeGpu()
    monkeypatch.setitem(sys.modules, "faiss", fake)
    for inner in (fake.GpuIndexIVFPQ(), fake.IndexShards()):
        for index in (inner, fake.IndexPreTransform(inner)):
            indexes.Searcher(index, 77)
            assert fake.told.pop() == (index, "nprobe", 77)
            assert indexes.to_host(index) == ("on the host", index)
        indexes.Searcher(inner, 0)  # no lists: nothing to set
        assert not fake.told
    on_host = fake.IndexPreTransform(object())
    assert indexes.to_host(on_host) is on_host


def test_lists_below_a_rotation_are_visited_as_asked() -> None:
    base = unit(np.random.default_rng(0), 2000, 8)
    index, _ = build_index(base, NeighbourParams(factory="OPQ4_8,IVF16,PQ4x4"))
    indexes.Searcher(index, 5)
    assert faiss.extract_index_ivf(index).nprobe == 5


def test_a_graph_over_the_centres_is_left_where_many_lists_are_wanted() -> None:
    base = unit(np.random.default_rng(0), 4000, 8)
    index, _ = build_index(base, NeighbourParams(factory="IVF64_HNSW32,PQ4x4"))
    expected = index.search  # FAISS' own, through the graph
    faiss.extract_index_ivf(index).nprobe = 32
    scores, rows = expected(base[:200], 10)
    found = indexes.Searcher(index, 32)(base[:200], 10)
    assert (found[1] == rows).mean() > 0.99  # the graph may miss a list
    np.testing.assert_allclose(found[0][found[1] == rows], scores[found[1] == rows], atol=1e-5)


def test_kmeans_takes_the_gpu_unless_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    real = faiss.Kmeans

    def record(*args: object, gpu: bool, **kwargs: object) -> object:
        taken.append(gpu)
        return real(*args, gpu=False, **kwargs)

    monkeypatch.setattr(faiss, "Kmeans", record)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(indexes, "to_device", lambda index, _: index)
    points = unit(np.random.default_rng(0), 30, 4)
    kmeans(points, KMeans(3, 1, 0))
    kmeans(points, KMeans(3, 1, 0, device="cpu"))
    assert taken == [True, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.__setitem__((3, 1), np.nan), "row 3 is NaN"),
        (lambda b: b.__setitem__(5, 0), "row 5 is all zeros"),
    ],
)
def test_bad_rows_are_named(change: object, words: str) -> None:
    base = unit(np.random.default_rng(0), 10, 4)
    change(base)  # type: ignore[operator]
    with pytest.raises(VitrailError, match=words):
        knn(base, base[:1], 1, NeighbourParams())


def test_impossible_requests_say_what_to_do() -> None:
    base = unit(np.random.default_rng(0), 10, 4)
    with pytest.raises(VitrailError, match="k=11 of 10"):
        knn(base, base, 11, NeighbourParams())
    with pytest.raises(VitrailError, match="4 dimensions, queries 3"):
        knn(base, base[:, :3], 1, NeighbourParams())
    with pytest.raises(VitrailError, match="N > 0"):
        knn(base[:0], base, 1, NeighbourParams())
    with pytest.raises(VitrailError, match="needs 156 training vectors, there are 10"):
        knn(base, base, 1, NeighbourParams(factory="IVF4,Flat"))
    with pytest.raises(VitrailError, match="for 4 dimensions: FAISS refuses it"):
        knn(base, base, 1, NeighbourParams(factory="IVF4,PQ3"))
    with pytest.raises(VitrailError, match="does not divide"):
        knn(base, base, 1, NeighbourParams(flat_up_to=1, pq_bytes=3))
    with pytest.raises(VitrailError, match="11 clusters of 10"):
        kmeans(base, KMeans(11, 1, 0))


def test_kmeans_finds_planted_clusters() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 200)
    points = np.eye(8, dtype=np.float32)[truth] + 0.05 * rng.normal(size=(200, 8)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    centroids, assigned, cosine = kmeans(points, KMeans(4, 20, 0))
    assert centroids.shape == (4, 8)
    pairs = {(int(t), int(c)) for t, c in zip(truth, assigned, strict=True)}
    assert len(pairs) == 4  # one cluster a planted group
    np.testing.assert_allclose(cosine, (points * centroids[assigned]).sum(1), atol=1e-5)


def descriptors(path: Path, rows: np.ndarray) -> np.ndarray:
    np.save(path, rows)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("factory", ["IVF8,PQ4x4", "OPQ4_8,IVF8_HNSW32,PQ4x4"])
def test_an_index_built_in_pieces_finds_what_one_built_at_once_finds(tmp_path: Path, factory: str) -> None:
    base = descriptors(tmp_path / "base.npy", unit(np.random.default_rng(0), 4000, 8, np.float16))
    params = NeighbourParams(factory=factory, nprobe=4, candidates=20)
    ranges = [(0, 1500), (1500, 1501), (1501, 4000)]
    on_disk = IndexFolder(tmp_path / "index")
    on_disk.train(base, "these", params)
    pieces = [on_disk.build_piece(base, *piece, params) for piece in ranges]
    kept = pieces[0].stat().st_mtime_ns
    on_disk.build_piece(base, *ranges[0], params)  # a second time: it is there
    assert pieces[0].stat().st_mtime_ns == kept
    on_disk.merge(ranges)
    on_disk.merge(ranges)  # nothing to do
    expected = knn(base, base[:300], 5, params)
    for lists in ("memory", "mapped"):
        opened = on_disk.open(base, params.model_copy(update={"lists": lists}), "these")
        found = opened.search(base[:300], 5)
        agreement = (found[1] == expected[1]).mean()
        # Mapped 4-bit codes are summed in fp32, in registers in 8 bits: a few candidates may differ.
        assert agreement == 1.0 if lists == "memory" else agreement > 0.99, (lists, agreement)
    with pytest.raises(VitrailError, match="built from other descriptors"):
        on_disk.open(base, params, "others")
    with pytest.raises(VitrailError, match=r"do not match: it holds 4,000 rows of 8, they are 3,999 of 8"):
        on_disk.open(base[1:], params)


def test_a_changed_or_short_index_file_is_refused_before_faiss_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = unit(np.random.default_rng(0), 2000, 8, np.float16)
    params = NeighbourParams(factory="IVF8,PQ4x4")
    on_disk = IndexFolder(tmp_path / "index")
    on_disk.train(base, "d", params)
    piece = on_disk.build_piece(base, 0, 2000, params)
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-7])
    with pytest.raises(VitrailError, match="cut short or changed"):
        on_disk.merge([(0, 2000)])
    assert not (tmp_path / "index/merged").exists()
    on_disk.build_piece(base, 0, 2000, params)  # the build mends it
    assert piece.read_bytes() == whole
    with pytest.raises(VitrailError, match="do not cover rows 0 to 2000"):
        on_disk.merge([(0, 1000)])
    on_disk.merge([(0, 2000)])
    data = tmp_path / "index/merged/lists.ivfdata"
    sound = data.read_bytes()
    data.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    monkeypatch.setattr("components.neighbours.files._read", lambda *_: pytest.fail("FAISS was given a bad file"))
    with pytest.raises(VitrailError, match="SHA-256 differs"):
        on_disk.open(base, params)
    data.write_bytes(sound[:-1])
    with pytest.raises(VitrailError, match="cut short"):
        on_disk.open(base, params, verified=True)
    (tmp_path / "index/index.json").write_text("{")
    with pytest.raises(VitrailError, match="not JSON"):
        on_disk.open(base, params)
    with pytest.raises(VitrailError, match="no index here"):
        IndexFolder(tmp_path / "none").open(base, params)


def test_bad_rows_stop_a_piece_and_other_descriptors_replace_the_index(tmp_path: Path) -> None:
    base = unit(np.random.default_rng(0), 2000, 8, np.float32)
    params = NeighbourParams(factory="IVF8,PQ4x4")
    on_disk = IndexFolder(tmp_path / "index")
    on_disk.train(base, "d", params)
    base[1500, 3] = np.nan
    on_disk.build_piece(base, 0, 1500, params)
    with pytest.raises(VitrailError, match="row 1500 is NaN"):
        on_disk.build_piece(base, 1000, 2000, params)
    assert [p.name for p in (tmp_path / "index").glob("piece-*.faiss")] == ["piece-000000000000-000000001500.faiss"]
    on_disk.train(unit(np.random.default_rng(1), 900, 8), "e", params)
    assert not [*(tmp_path / "index").glob("piece-*")]
    with pytest.raises(VitrailError, match="needs 624 training vectors, there are 400"):
        on_disk.train(base[:400], "f", NeighbourParams(factory="IVF8,PQ4x4"))
    with pytest.raises(VitrailError, match="no inverted lists"):
        on_disk.train(base[:400], "g", NeighbourParams())


@pytest.mark.parametrize(("seed", "floor"), [(0, -0.5), (1, 0.3), (2, 0.9)])
def test_a_floor_loses_nothing_above_it(seed: int, floor: float) -> None:
    rng = np.random.default_rng(seed)
    base = unit(rng, 700, 4)
    params = NeighbourParams(factory="IVF1,PQ4x4", candidates=40, train_per_list=700)
    some, rows = Neighbours(base, params).search(base[:20], 17, floor)
    exact = base[:20] @ base.T
    reached = rows >= 0
    np.testing.assert_allclose(some[reached], np.take_along_axis(exact, rows, 1)[reached], atol=1e-5)
    expected = np.minimum((exact > floor).sum(1), 17)
    assert (some > floor).sum() >= 0.98 * expected.sum()
    assert ((some > floor).sum(1) <= expected).all()


@pytest.mark.parametrize(
    "factory", ["IVF64,PQ16x4fs", "HNSW32", "IVF4,Nonsense", "IVF0,Flat", "IVF4,SQ8", "PQ16", "", "Flat,"]
)
def test_forms_that_are_not_known_to_be_good_are_refused_as_they_are_read(factory: str) -> None:
    with pytest.raises(ValueError, match="expected auto, Flat, or lists"):
        NeighbourParams(factory=factory)


def test_a_form_over_which_faiss_ends_the_process_is_one_line() -> None:
    with pytest.raises(VitrailError, match=r"IVF64,PQ16x4fs.*FAISS ends the process by SIG"):
        indexes.make("IVF64,PQ16x4fs", 64)
    with pytest.raises(VitrailError, match=r"IVF4_HNSW1,PQ4.*FAISS ends the process by SIG"):
        indexes.make("IVF4_HNSW1,PQ4", 8)
