"""Kept features are used while nothing changed, and made anew when anything did; commands on models share them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from components.benchmark.features import feature_cache
from components.benchmark.features.contenders import BaselineParams, Contender, gather
from components.benchmark.features.feature_cache import cached_features
from components.benchmark.features.spread import Pictured, Placement, pictured
from components.benchmark.oxford import NamedPictures
from components.evaluation.features.extract import FeatureParams
from components.evaluation.features.store import FeatureStore
from components.evaluation.sets.benchmarks import Benchmark
from components.evaluation.sets.labelled_set import ImageFiles
from components.learning.export import ModelCard, export_model
from components.learning.vit import VisionTransformer, ViTConfig
from components.release.use import kept_features
from components.release.use.embed import EmbedParams, embed_all
from components.release.use.features import FeatureSpec

VIT = ViTConfig(image_size=16, patch_size=8, embed_dim=12, depth=2, heads=2)
COUNT = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and four pictures in ``photos``."""
    root = tmp_path_factory.mktemp("kept")
    for seed, mean in (("0", 0.5), ("1", 0.5), ("2", 0.4)):
        model = VisionTransformer(VIT).eval()
        generator = torch.Generator().manual_seed(min(int(seed), 1))
        for weights in model.parameters():  # fresh ones make nearly the same features of all images
            torch.nn.init.normal_(weights, 0, 0.3, generator)
        about: dict[str, Any] = {"kind": "pretrain", "preset": "tiny", "vit": VIT, "std": (0.25,) * 3}
        card = ModelCard(**about, mean=(mean,) * 3, image_size=16, step=1, params_fingerprint="f", data_digest="d")
        export_model(root / f"m{seed}", model.state_dict(), card)
    (root / "photos/a").mkdir(parents=True)
    (root / "photos/b").mkdir()
    for row in range(COUNT):
        levels = np.random.default_rng(row).integers(0, 256, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(levels).save(root / f"photos/{'ab'[row % 2]}/{row}.png")
    return root


def contenders(root: Path, model: str, params: FeatureParams) -> list[Contender]:
    """Raw pixels, the untrained twin and the checkpoint."""
    return gather([root / model], params, BaselineParams(raw_side=8), "cpu")


def benchmark(root: Path, order: list[int]) -> Benchmark:
    files = sorted((root / "photos").rglob("*.png"), key=lambda path: path.stem)
    held = np.array([True, *[False] * (COUNT - 1)])
    keys, images = [str(row) for row in order], ImageFiles([files[row] for row in order])
    return Benchmark("b", keys, images, {"t": np.array(order)}, {}, held)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the contenders whose features were computed."""
    names: list[str] = []
    plain = feature_cache.features_of

    def noted(wanted: list[Contender], *others: Any) -> Any:
        names.extend(one.name for one in wanted)
        return plain(wanted, *others)

    monkeypatch.setattr(feature_cache, "features_of", noted)
    return names


def test_features_are_read_until_weights_images_or_the_way_change(
    root: Path, tmp_path: Path, computed: list[str]
) -> None:
    place = Placement(kept=tmp_path)

    def features(order: list[int], model: str = "m0", **params: Any) -> Any:
        computed.clear()
        return cached_features(
            contenders(root, model, FeatureParams(**params)), pictured(benchmark(root, order)), 2, place
        )

    first = features([0, 1, 2, 3])
    raw, untrained, own = first
    assert computed == [raw, untrained, own]
    again = features([3, 1, 0])  # another set, order and labels of the same images
    assert computed == [raw]
    for name in first:
        np.testing.assert_array_equal(again[name], first[name][[3, 1, 0]])
    features([0, 1], crop=0.5)
    assert computed == [raw, untrained, own]
    features([0, 1], "m1")  # the twin is the same
    assert computed == [raw, own]
    features([0, 1], "m2")  # other normalisation
    assert computed == [raw, untrained, own]
    both = features([0, 1], tokens="cls+patches")
    assert computed == [raw, untrained, own]
    np.testing.assert_array_equal(features([1, 0], tokens="cls+patches")[own], both[own][[1, 0]])
    assert computed == [raw]

    for path in tmp_path.rglob("cls.npy"):
        path.write_bytes(b"damaged")
    np.testing.assert_array_equal(features([0, 1])[own], first[own][:2])
    assert computed == [raw, untrained, own]
    features([0, 1])
    assert computed == [raw]


def test_several_blocks_are_kept_apart_and_give_the_class_token_alone(
    root: Path, tmp_path: Path, computed: list[str]
) -> None:
    images, place = pictured(benchmark(root, [0, 1, 2])), Placement(kept=tmp_path)
    grid = contenders(root, "m0", FeatureParams(blocks=4))  # more than there are
    first = cached_features(grid, images, 2, place)
    computed.clear()
    np.testing.assert_array_equal(cached_features(grid, images, 2, place)[grid[2].name], first[grid[2].name])
    assert computed == ["raw pixels"]
    for tokens in ("cls", "patches"):
        alone = contenders(root, "m0", FeatureParams(tokens=tokens))
        read = cached_features(alone, images, 2, place)
        assert computed == ["raw pixels", "raw pixels"]
        computed.pop()
        fresh = cached_features(alone, images, 2)
        del computed[1:]
        np.testing.assert_allclose(read[alone[2].name], fresh[alone[2].name], atol=1e-6)


def test_queries_of_one_file_are_kept_by_their_boxes(root: Path, tmp_path: Path) -> None:
    [one] = contenders(root, "m0", FeatureParams())[2:]
    boxes: list[Any] = [None, (0, 0, 12, 12), (4, 4, 20, 20)]
    named = NamedPictures(root / "photos/a", ["0"] * 3, boxes)
    fresh = cached_features([one], Pictured(named, named.digests, "q"), 3)[one.name]
    for _ in range(2):
        kept = cached_features([one], Pictured(named, named.digests, "q"), 3, Placement(kept=tmp_path))[one.name]
        np.testing.assert_array_equal(kept, fresh)
    assert len(np.unique(fresh.round(4), axis=0)) == 3
    turned = NamedPictures(root / "photos/a", ["0"] * 3, boxes[::-1])
    kept = cached_features([one], Pictured(turned, turned.digests, "q"), 3, Placement(kept=tmp_path))[one.name]
    np.testing.assert_array_equal(kept, fresh[::-1])


def test_embed_and_the_stage_read_each_others_features(
    root: Path, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [own] = contenders(root, "m0", FeatureParams(blocks=2))[2:]
    images, kept = pictured(benchmark(root, [2, 0])), tmp_path / "kept"
    stage = cached_features([own], images, 2, Placement(kept=kept))[own.name]
    passed: list[int] = []
    plain = kept_features.embed

    def noted(model: Any, pairs: list[Any], spec: FeatureSpec) -> Any:
        passed.append(len(pairs))
        return plain(model, pairs, spec)

    monkeypatch.setattr(kept_features, "embed", noted)
    (root / "photos/b/bad.png").write_bytes(b"no image")
    params = EmbedParams(FeatureSpec(kinds=("mean", "cls")), device="cpu", kept=kept)
    try:
        tables = []
        for given in (params, params, replace(params, kept=None)):
            embed_all(str(root / "m0"), str(root / "photos"), tmp_path / "out", given)
            tables.append(pq.read_table(sorted((tmp_path / "out").glob("part-*"))).to_pydict())
    finally:
        (root / "photos/b/bad.png").unlink()
    assert passed == [3, 1]  # the damaged one is asked for again
    read, again, fresh = tables
    assert read == again
    assert read["key"] == ["a/0.png", "a/2.png", "b/1.png", "b/3.png", "b/bad.png"]
    for column in ("error", "height", "width", "rows", "columns"):
        assert read[column] == fresh[column]
    assert read["error"][-1]
    assert read["cls"][-1] is None
    for column, at in (("cls", slice(12, 24)), ("mean", slice(24, 36))):
        np.testing.assert_allclose(np.array(read[column][:-1]), np.array(fresh[column][:-1]), atol=1e-6)
        np.testing.assert_array_equal(np.array(read[column][:2], np.float32), stage[::-1, at])

    computed.clear()
    twin = contenders(root, "m0", FeatureParams())[2:]
    cached_features(twin, pictured(benchmark(root, [3, 2, 1, 0])), 2, Placement(kept=kept))
    assert computed == []


def test_tokens_of_single_patches_and_images_of_their_own_size_are_not_kept(root: Path, tmp_path: Path) -> None:
    for spec in (FeatureSpec(kinds=("patches",)), FeatureSpec(size="native", crop=True)):
        params = EmbedParams(spec, device="cpu", kept=tmp_path / "kept")
        assert embed_all(str(root / "m0"), str(root / "photos"), tmp_path / "out", params)["errors"] == 0
    assert not (tmp_path / "kept").exists()


def test_a_store_keeps_each_image_once_and_nothing_that_is_not_finite(tmp_path: Path) -> None:
    store, rows = FeatureStore(tmp_path), np.arange(12, dtype=np.float32).reshape(4, 3)
    digests = [f"{number:064x}" for number in (3, 1, 2, 1)]
    assert store.read(digests, ["cls"])[1].tolist() == [False] * 4
    rows[2, 1] = np.nan
    store.keep(digests, {"cls": rows})
    store.keep(digests, {"cls": rows + 100})
    found, kept = store.read(digests, ["cls"])
    assert kept.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(found[[0, 1, 3]], rows[[0, 1, 1]])
    assert len(list(tmp_path.iterdir())) == 1
    store.keep(digests[2:3], {"cls": rows[:1], "patches": rows[:1, :2]})
    assert FeatureStore(tmp_path).read(digests, ["cls"])[1].all()
    assert FeatureStore(tmp_path).read(digests, ["cls", "patches"])[1].tolist() == [False, False, True, False]
    (damaged, *_) = tmp_path.glob("*/digests.npy")
    damaged.write_bytes(b"")
    assert FeatureStore(tmp_path).read(digests, ["cls"])[1].sum() in (1, 3)
