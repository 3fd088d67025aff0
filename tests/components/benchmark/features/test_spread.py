"""Features computed by other processes are those of one process; what was finished is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from components.benchmark.features import spread
from components.benchmark.features.contenders import BaselineParams, Contender, gather
from components.benchmark.features.spread import HERE, Pictured, Placement, features_of
from components.benchmark.oxford import NamedPictures
from components.errors import VitrailError
from components.evaluation.features.extract import FeatureParams
from components.evaluation.features.patch_kmeans import PatchKmeansParams, fit_patch_kmeans
from components.evaluation.sets.labelled_set import ImageColumn, ImageFiles, Images
from components.evaluation.sets.tar_set import Span, Spans
from components.executor import ExecutorParams, kept_workers, map_shards, worker_number
from components.learning.export import ModelCard, export_model
from components.learning.vit import VisionTransformer, ViTConfig
from components.release.weights import load

COUNT, BATCH = 10, 2
PARAMS = FeatureParams(batch_size=BATCH, blocks=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("spread")
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 40, 36, 3), np.uint8)
    for row in range(COUNT):
        Image.fromarray(pixels[row]).save(root / f"{row}.png")
    return [root / f"{row}.png" for row in range(COUNT)]


@pytest.fixture(scope="module")
def contenders(files: list[Path]) -> list[Contender]:
    """Raw pixels, patches, a network and its untrained twin."""
    vit = ViTConfig(image_size=32, patch_size=8, embed_dim=24, depth=2, heads=2)
    model = VisionTransformer(vit)
    model.init_weights(torch.Generator().manual_seed(3))
    about: dict[str, Any] = {"kind": "pretrain", "preset": "tiny", "vit": vit, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    card = ModelCard(**about, image_size=32, step=1, params_fingerprint="f", data_digest="d")
    export_model(files[0].parent / "tiny", model.state_dict(), card)
    found = gather([files[0].parent / "tiny"], PARAMS, BaselineParams(raw_side=16), "cpu")
    squares = np.stack([np.asarray(Image.open(path).resize((16, 16))) for path in files])
    fitted = fit_patch_kmeans(squares, PatchKmeansParams(side=16, centroids=4, patches=200))
    return [*found, Contender("patch k-means", "patches", fitted, {})]


def pictured(images: Images) -> Pictured:
    return Pictured(images, lambda: ["digest"], "features")


def test_a_pool_of_two_gives_the_bytes_of_one_process(
    files: list[Path], contenders: list[Contender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "PART", 4)
    together = tmp_path / "together"
    together.write_bytes(b"".join(path.read_bytes() for path in files))
    sizes = [path.stat().st_size for path in files]
    spans = [Span(together, sum(sizes[:row]), size, files[row].name) for row, size in enumerate(sizes)]
    column = ImageColumn(
        pa.chunked_array([[path.read_bytes() for path in part] for part in (files[:3], files[3:])]), "t"
    )
    named = NamedPictures(files[0].parent, [path.stem for path in files], [None, (2, 3, 30, 33), *[None] * 8])
    place = Placement(ExecutorParams(workers=2), "auto", tmp_path / "work")
    with kept_workers(place.executor):
        for images in (ImageFiles(files), Spans(spans), column, named):
            here = features_of(contenders, pictured(images), BATCH, HERE)
            spread_out = features_of(contenders, pictured(images), BATCH, place)
            assert list(spread_out) == [one.name for one in contenders]
            for name, rows in here.items():
                assert rows.shape[0] == COUNT
                assert spread_out[name].tobytes() == rows.tobytes(), name
            assert not (tmp_path / "work").exists()
        assert set(map_shards(_number, range(8), place.executor)) <= {0, 1}
    assert worker_number() is None


def _number(_: int) -> int | None:
    return worker_number()


def test_an_interrupted_run_goes_on_with_the_parts_that_lack(
    files: list[Path], contenders: list[Contender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[int, list[str]]] = []

    def inline(stop: int) -> Callable[..., Iterator[Any]]:
        def mapped(task: Callable[[Any], Any], parts: Iterable[Any], _: ExecutorParams) -> Iterator[Any]:
            for part in parts:
                if len(computed) == stop:
                    raise KeyboardInterrupt
                computed.append((part.number, list(part.files)))
                yield task(part)

        return mapped

    monkeypatch.setattr(spread, "PART", 4)
    place, network = Placement(ExecutorParams(workers=2), "cpu", tmp_path / "work"), contenders[2]
    assert network.kind == "checkpoint"
    monkeypatch.setattr(spread, "map_shards", inline(2))
    with pytest.raises(KeyboardInterrupt):
        features_of([network], pictured(ImageFiles(files)), BATCH, place)
    [damaged, _] = sorted((tmp_path / "work").rglob("*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-8])
    monkeypatch.setattr(spread, "map_shards", inline(-1))
    raw = contenders[0]
    found = features_of([network, raw], pictured(ImageFiles(files)), BATCH, place)
    both = [network.name, raw.name]
    assert computed[2:] == [(0, both), (1, [raw.name]), (2, both)]
    here = features_of([network, raw], pictured(ImageFiles(files)), BATCH)
    assert all(found[name].tobytes() == rows.tobytes() for name, rows in here.items())

    # Parts of other images, of another order or of another network are not used.
    features_of([network], Pictured(ImageFiles(files), lambda: ["other"], ""), BATCH, place)
    assert len(computed) == 8


def test_weights_that_changed_meanwhile_and_images_that_cannot_travel(
    files: list[Path], contenders: list[Contender], tmp_path: Path
) -> None:
    recipe = contenders[2].recipe
    assert recipe is not None
    with pytest.raises(VitrailError, match=r"tiny: it changed while it was being measured; run again$"):
        replace(recipe, weights="of before").made("cpu")

    class Own:
        """A plugin's images: no part of them can be named."""

        def __len__(self) -> int:
            return COUNT

        def bytes(self, row: int) -> bytes:
            return files[row].read_bytes()

        def rgb(self, row: int) -> Any:
            return ImageFiles(files).rgb(row)

    place = Placement(ExecutorParams(workers=2), "cpu", tmp_path / "work")
    found = features_of(contenders[:1], pictured(Own()), BATCH, place)
    assert (
        found["raw pixels"].tobytes()
        == features_of(contenders[:1], pictured(ImageFiles(files)), BATCH)["raw pixels"].tobytes()
    )
    with pytest.raises(VitrailError, match=r"t, row 5: not a readable image"):
        ImageColumn(pa.chunked_array([[b"no image"] * 7]), "t").part(4, 6).rgb(1)


def test_a_pools_workers_keep_to_a_gpu_each_and_others_take_them_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [load.worker_device("auto", part) for part in range(5)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0"]
    monkeypatch.setattr(load, "worker_number", lambda: 6)
    assert [load.worker_device("cuda", part) for part in range(3)] == ["cuda:2"] * 3
    assert load.worker_device("cuda:3", 0) == "cuda:3"
    assert load.worker_device("cpu", 0) == "cpu"
