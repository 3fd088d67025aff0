"""Kept features are used while nothing changed, and made anew when anything did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from components.benchmark.contenders import Contender
from components.benchmark.feature_cache import cached_features
from components.benchmark.own import Pictures
from components.evaluation.benchmarks import Benchmark
from components.evaluation.features import FeatureParams, network
from components.learning.export import ModelCard
from components.learning.vit import VisionTransformer, ViTConfig

VIT = ViTConfig(image_size=16, patch_size=8, embed_dim=12, depth=1, heads=2)


def contender(seed: int, params: FeatureParams) -> Contender:
    model = VisionTransformer(VIT).eval()
    model.init_weights(torch.Generator().manual_seed(seed))
    about = {"kind": "pretrain", "preset": "tiny", "vit": VIT, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    card = ModelCard(**about, image_size=16, step=1, params_fingerprint="f", data_digest="d")  # type: ignore[arg-type]
    return Contender("c", "checkpoint", network(model, card.mean, card.std, 16, params), {}, model, card)


def test_features_are_read_until_weights_images_or_the_way_change(tmp_path: Path) -> None:
    pictures = [np.random.default_rng(i).integers(0, 256, (20, 20, 3)).astype(np.uint8) for i in range(4)]
    keys, held = [str(i) for i in range(4)], np.array([True, False, False, False])
    benchmark = Benchmark("b", keys, Pictures(pictures), {"t": np.arange(4)}, {}, held)
    benchmark.__dict__["digest"] = "d" * 64
    params = FeatureParams()
    first = cached_features([contender(0, params)], benchmark, params, tmp_path)["c"]
    (path,) = tmp_path.iterdir()
    np.save(path, first + 1)  # what is read shows that it was read
    assert (cached_features([contender(0, params)], benchmark, params, tmp_path)["c"] == first + 1).all()
    path.write_bytes(b"damaged")
    assert (cached_features([contender(0, params)], benchmark, params, tmp_path)["c"] == first).all()
    cached_features([contender(1, params)], benchmark, params, tmp_path)
    other = FeatureParams(crop=0.5)
    cached_features([contender(0, other)], benchmark, other, tmp_path)
    moved = replace(benchmark)
    moved.__dict__["digest"] = "e" * 64
    cached_features([contender(0, params)], moved, params, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    raw = replace(contender(0, params), model=None, card=None)
    cached_features([raw], benchmark, params, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
