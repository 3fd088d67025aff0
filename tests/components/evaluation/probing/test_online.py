"""What a run is probed on, what the probes say, and what of it MLflow shows."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from components import tracking
from components.errors import VitrailError
from components.evaluation.dense.patch_labels import IGNORE
from components.evaluation.image_level.linear import LinearParams, linear_probe
from components.evaluation.probing.online import Recorder, Subject, best_step, named_sets
from components.evaluation.probing.probes import ProbeFeatures, Prober, choose_patches, pixels_of_patches
from components.evaluation.probing.sample import draw, probe_rows
from components.evaluation.probing.seeds import crops_picture
from components.evaluation.sets.benchmarks import Benchmark
from components.learning.vit import VisionTransformer
from components.params import parse_params
from components.tracking import TrackingParams
from components.training.params import TrainingParams
from components.training.probe_params import ProbeParams
from components.training.ranks.distributed import World

CPU = torch.device("cpu")
PRESET: dict[str, Any] = {
    "vit": {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "heads": 2, "drop_path": 0.3},
    "heads": {"dino": {"prototypes": 32, "hidden": 24, "bottleneck": 8}},
    "augment": {"global_size": 16, "local_size": 8, "locals": 2},
    "masks": {"min_patches": 1},
    "schedule": {"learning_rate": {"peak": 1e-3}},
    "run": {"iterations": 6, "batch": 4},
    "probe": {
        "benchmark": "toy",
        "bank": 40,
        "held_out": 20,
        "neighbours": 3,
        "linear": {"costs": [0.1, 1.0], "folds": 2},
        "dense": {"kind": "mosaic", "task": "kind", "image_size": 32, "train": 10, "held_out": 5, "patches": 100},
        "pictures": 2,
        "raw_side": 8,
    },
}


def params(**probe: Any) -> TrainingParams:
    return parse_params(PRESET | {"probe": PRESET["probe"] | probe}, TrainingParams, "here")


class Toy:
    """Gray-ish pictures whose brightness is their class."""

    def __init__(self, count: int = 90) -> None:
        generator = np.random.default_rng(0)
        self.labels = generator.integers(0, 2, count)
        self.pixels = (
            60 + 120 * self.labels[:, None, None, None] + generator.integers(0, 40, (count, 40, 36, 3))
        ).astype(np.uint8)
        self.read: set[int] = set()

    def __len__(self) -> int:
        return len(self.pixels)

    def bytes(self, row: int) -> bytes:
        return self.pixels[row].tobytes()

    def rgb(self, row: int) -> np.ndarray:
        self.read.add(row)
        return self.pixels[row]


def toy(groups: np.ndarray | None = None) -> tuple[Benchmark, Toy]:
    images = Toy()
    test = np.arange(90) % 4 == 0
    keys = [f"toy/{row}" for row in range(90)]
    return Benchmark("toy", keys, images, {"kind": images.labels}, {"kind": ["a", "b"]}, test, groups=groups), images


def test_the_sample_is_of_the_training_side_and_fixed_by_its_seed() -> None:
    benchmark, images = toy()
    first, again = draw(benchmark, params()), draw(benchmark, params())
    other = draw(benchmark, params(seed=1))
    assert images.read.isdisjoint(np.flatnonzero(benchmark.test).tolist())
    assert first.labelled is not None
    assert first.dense is not None
    assert again.labelled is not None
    assert other.labelled is not None
    assert first.labelled.digest == again.labelled.digest != other.labelled.digest
    assert first.dense.digest == again.dense.digest != other.dense.digest  # type: ignore[union-attr]
    assert (first.labelled.bank, len(first.labelled.rows)) == (40, 60)
    assert first.labelled.squares.shape == (60, 16, 16, 3)
    images.pixels[first.labelled.rows[3], 0, 0] ^= 1  # one pixel
    assert draw(benchmark, params()).labelled.digest != first.labelled.digest  # type: ignore[union-attr]


def test_a_mosaic_shows_parts_of_labelled_images_and_the_sides_share_none() -> None:
    benchmark, images = toy()
    generator = np.random.default_rng(1)
    for row in range(90):  # a colour of its own for each image
        images.pixels[row] = generator.integers(0, 255, 3)
    sample = draw(benchmark, params())
    assert sample.dense is not None
    assert sample.labelled is not None
    colour_of = {tuple(images.pixels[row, 0, 0].tolist()): row for row in range(90)}
    bank = set(sample.labelled.rows[:40])
    for number, (image, mask) in enumerate(zip(sample.dense.images, sample.dense.masks, strict=True)):
        shown = {colour_of[tuple(pixel)] for pixel in image.reshape(-1, 3).tolist()}
        assert len(shown) == 4
        assert shown <= bank if number < sample.dense.train else shown.isdisjoint(bank)
        for pixel, label in zip(image.reshape(-1, 3).tolist(), mask.reshape(-1).tolist(), strict=True):
            assert images.labels[colour_of[tuple(pixel)]] == label
    assert sample.dense.name == "toy/kind-mosaic"


def test_a_small_side_is_cut_in_proportion_and_groups_stay_whole() -> None:
    benchmark, _ = toy()
    bank, held_out = probe_rows(benchmark, ProbeParams(bank=300, held_out=100))
    assert (len(bank), len(held_out)) == (50, 17)  # 67 images on the training side
    grouped, _ = toy(np.arange(90) // 7)
    bank, held_out = probe_rows(grouped, ProbeParams(bank=40, held_out=20))
    assert set(np.array(bank) // 7).isdisjoint(set(np.array(held_out) // 7))
    assert abs(len(bank) - 40) < 7
    with pytest.raises(VitrailError, match="cannot be divided"):
        probe_rows(toy(np.zeros(90, np.int64))[0], ProbeParams(bank=40, held_out=20))


def test_scores_are_those_of_the_plain_probes_and_beat_chance_on_planted_structure() -> None:
    benchmark, _ = toy()
    prober = Prober(draw(benchmark, params()), params(), CPU)
    labelled = prober.sample.labelled
    assert labelled is not None
    generator = np.random.default_rng(0)
    labels = labelled.labels["kind"]
    cls = generator.normal(size=(60, 8)).astype(np.float32)
    cls[:, 0] += 1.5 * labels
    scores = prober.scores(ProbeFeatures(cls, None, None))
    probed = linear_probe(cls[:40], labels[:40], cls[40:], LinearParams(costs=[0.1, 1.0], folds=2, max_iterations=100))
    assert scores["probe/toy/kind/linear"] == np.mean(probed.predicted == labels[40:])
    assert scores["probe/toy/kind/linear"] > 0.7
    raw = prober.raw()  # brightness is the class
    assert raw["probe/toy/kind/linear"] == 1.0
    assert raw["probe/toy/kind-mosaic/miou"] > 0.7
    assert raw.keys() == scores.keys() | {"probe/toy/kind-mosaic/miou", "probe/toy/kind-mosaic/pixel_accuracy"}


def test_features_are_the_networks_and_touch_no_generator() -> None:
    benchmark, _ = toy()
    prober = Prober(draw(benchmark, params()), params(), CPU)
    model = VisionTransformer(params().vit).eval()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), model.generator.get_state()
    found = prober.features(model, torch.float32)
    prober.scores(found)
    prober.raw()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(model.generator.get_state(), before[2])
    dense = prober.sample.dense
    assert dense is not None
    assert found.cls is not None
    assert found.held_out is not None
    assert found.fitted is not None
    assert (found.cls.shape, found.held_out.shape, found.fitted.shape) == ((60, 16), (5, 16, 16), (100, 16))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (params().augment.mean, params().augment.std))
    pixels = (torch.from_numpy(dense.images[12]).permute(2, 0, 1).float() / 255 - mean) / std
    with torch.no_grad():
        alone = model(pixels[None]).patches[0]
    torch.testing.assert_close(torch.from_numpy(found.held_out[2]), alone, rtol=1e-4, atol=1e-4)
    again = prober.features(model, torch.float32)
    assert (again.fitted == found.fitted).all()


def test_patches_to_fit_on_are_labelled_and_even() -> None:
    labels = np.zeros((4, 9), np.int64)
    labels[0, 2:] = IGNORE
    chosen = choose_patches(labels, 20, np.random.default_rng(0))
    assert [len(at) for at in chosen] == [2, 5, 5, 5]
    assert chosen[0].tolist() == [0, 1]
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1).repeat(3, 3)
    pixels = pixels_of_patches(image, 2)
    assert pixels.shape == (1, 4, 16)  # gray: one channel
    assert (pixels[0, 1] * 255).round().reshape(4, 4).tolist() == image[0, :4, 4:, 0].tolist()
    image[0, 0, 0, 0] = 99
    assert pixels_of_patches(image, 2).shape == (1, 4, 48)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def own(folder: Path) -> None:
    """12 images of 24 x 20 px with masks of two classes and unlabelled pixels, as a folder and as Parquet."""
    generator = np.random.default_rng(0)
    images, masks = [], []
    for number in range(12):
        mask = np.zeros((24, 20), np.uint8)
        mask[:, 4 + number :] = 1
        mask[0] = 255
        images.append(
            png(np.clip(mask[..., None] * 100 + generator.integers(0, 50, (24, 20, 3)), 0, 255).astype(np.uint8))
        )
        masks.append(png(mask))
    for name, files in (("images", images), ("masks", masks)):
        (folder / name).mkdir()
        for number, data in enumerate(files):
            (folder / name / f"{number:02d}.png").write_bytes(data)
    pq.write_table(pa.table({"image": images, "mask": masks}), folder / "own.parquet")


def test_own_masks_as_folder_and_parquet_are_the_same_set(tmp_path: Path) -> None:
    own(tmp_path)
    sizes = {"image_size": 16, "train": 8, "held_out": 4, "name": "mine"}
    folder = {"kind": "folder", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")}
    files = draw(None, params(benchmark=None, dense=sizes | folder)).dense
    table = draw(None, params(benchmark=None, dense=sizes | {"kind": "parquet", "path": str(tmp_path / "own.parquet")}))
    assert files is not None
    assert table.dense is not None
    assert files.digest == table.dense.digest
    assert (files.classes, files.train, files.images.shape) == (2, 8, (12, 16, 16, 3))
    assert set(np.unique(files.masks)) == {0, 1}  # the centre square: 2 rows above and below fall away, row 0 with them
    prober = Prober(draw(None, params(benchmark=None, dense=sizes | folder)), params(dense=sizes | folder), CPU)
    assert prober.raw()["probe/mine/miou"] > 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no mask", "no 03.png"),
        ("colours", "one channel of class numbers"),
        ("size", "differ in size: 5 x 5 px and 24 x 20 px"),
        ("torn", "not a readable image"),
        ("folder", "no such folder"),
    ],
)
def test_what_is_wrong_with_own_masks_is_said(tmp_path: Path, change: str, message: str) -> None:
    own(tmp_path)
    path = tmp_path / "masks/03.png"
    if change == "no mask":
        path.unlink()
    elif change != "folder":
        path.write_bytes(
            {"colours": png(np.zeros((24, 20, 3), np.uint8)), "size": png(np.zeros((5, 5), np.uint8)), "torn": b"x"}[
                change
            ]
        )
    images = tmp_path / ("images" if change != "folder" else "elsewhere")
    dense = {"kind": "folder", "images": str(images), "masks": str(tmp_path / "masks"), "train": 8, "held_out": 4}
    with pytest.raises(VitrailError, match=message):
        draw(None, params(benchmark=None, dense=dense))


def test_a_set_of_masks_is_named_and_its_held_out_pictures_are_never_read(tmp_path: Path) -> None:
    for name, below in (("a", ""), ("b", ""), ("c", ""), ("z", "test_")):
        for folder, value in (("images", 90), ("masks", 1)):
            (tmp_path / f"{below}{folder}").mkdir(exist_ok=True)
            levels = np.full((40, 48, 3), value, np.uint8) if folder == "images" else np.full((40, 48), value, np.uint8)
            levels[:, :20] = 0 if folder == "masks" else 200
            Image.fromarray(levels).save(tmp_path / f"{below}{folder}/{name}.png")
    (tmp_path / "test_masks/z.png").write_bytes(b"never read")
    paths = {key: str(tmp_path / key) for key in ("images", "masks", "test_images", "test_masks")}
    file = tmp_path / "benchmarks.yaml"
    depth = {"kind": "depths", "images": paths["images"], "depths": paths["masks"]}
    file.write_text(json.dumps({"ground": {"kind": "masks"} | paths, "deep": depth}))
    dense = {"kind": "named", "benchmark": "ground", "image_size": 32, "train": 2, "held_out": 1, "patches": 100}
    asked = params(benchmark=None, dense=dense)
    assert asked.probe.scored
    benchmark, masks = named_sets(asked.probe, file)
    sample = draw(benchmark, asked, masks)
    assert sample.dense is not None
    assert (sample.dense.name, sample.dense.images.shape, sample.dense.train) == ("ground", (3, 32, 32, 3), 2)
    scores = Prober(sample, asked, CPU).raw()
    assert scores["probe/ground/miou"] > 0.8
    for change, message in (
        ({"benchmark": "grond"}, "probe.dense.benchmark: 'grond' is not in .* as a set of masks.*ground"),
        ({"benchmark": "deep"}, "'deep' of .* holds depths; the dense probe needs masks"),
    ):
        with pytest.raises(VitrailError, match=message):
            named_sets(params(benchmark=None, dense=dense | change).probe, file)
    with pytest.raises(VitrailError, match="ground is asked for, but no --benchmarks file"):
        named_sets(asked.probe, None)


def test_the_best_step_is_that_of_the_asked_method() -> None:
    probes = [
        {"step": 0, "probe/b/t/knn20": 0.99, "probe/b/t/linear": 0.1},
        {"step": 3, "probe/b/t/knn20": 0.5, "probe/b/u/knn20": 0.9, "probe/b/t/linear": 0.3},
        {
            "step": 6,
            "probe/b/t/knn20": 0.6,
            "probe/b/u/knn20": 0.7,
            "probe/b/t/linear": 0.4,
            "probe/b/t/knn20_raw_pixels": 1.0,
        },
    ]
    assert best_step(probes, "knn") == (3, pytest.approx(0.7))
    assert best_step(probes, "linear") == (6, 0.4)
    assert best_step(probes, "dense") is None
    assert best_step(probes[:1], "knn") is None


def test_crops_and_masks_of_fixed_images_are_repeatable() -> None:
    images = [np.full((30, 40, 3), value, np.uint8) for value in (0, 250)]
    one = crops_picture(images, params(), np.random.default_rng([0, 3]))
    assert one.shape == (2 * 16, 6 * 16, 3)  # two global crops, each with its mask, and two local ones
    assert (one == crops_picture(images, params(), np.random.default_rng([0, 3]))).all()
    assert (one != crops_picture(images, params(), np.random.default_rng([0, 4]))).any()


def test_mlflow_shows_scores_references_pictures_and_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = TrackingParams(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="vitrail", system_metrics=False)
    benchmark, images = toy()
    model = VisionTransformer(params().vit).eval()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.json").write_text("{}")
    seeds = [images.pixels[row] for row in (1, 2)]
    with tracking.run("pretrain", "pretrain t", store, {}) as run:
        recorder = Recorder(
            run,
            model,
            torch.float32,
            params(),
            World(0, 1, 0, CPU),
            Subject("pretrain", "t", ("m", "d" * 64), seeds, benchmark),
        )
        curve = [{"step": 0, **recorder.begin()}]
        for step in (3, 6):
            model.init_weights(torch.Generator().manual_seed(step))
            curve.append({"step": step, **recorder.probe(step)})
        with torch.no_grad():
            model.norm.weight[0] = float("nan")
        assert recorder.probe(7) == {}  # a diverged network is not scored and ends nothing
        (tmp_path / "out/curve.json").write_text(json.dumps({"probes": curve}))
        recorder.finish(tmp_path / "out", {"iterations": 7, "minutes": 1, "images_per_second": 2, "skipped_steps": 0})
    client = MlflowClient(tracking_uri=store.uri)
    experiment = client.get_experiment_by_name("vitrail").experiment_id
    models = {model.name: model for model in client.search_logged_models([experiment])}
    assert models.keys() == {"t-step3", "t-step6"}
    names = {
        f"probe/toy/{name}" for name in ("kind/knn3", "kind/linear", "kind-mosaic/miou", "kind-mosaic/pixel_accuracy")
    }
    sample = draw(benchmark, params())
    assert sample.dense is not None
    assert sample.labelled is not None
    for point in curve[1:]:
        found = models[f"t-step{point['step']:.0f}"].metrics
        assert {metric.key: metric.value for metric in found} == {name: point[name] for name in names}
        for metric in found:
            digest = sample.dense.digest if "mosaic" in metric.key else sample.labelled.digest
            assert metric.dataset_digest == digest[:36]
    for name in names:
        assert [p.step for p in sorted(client.get_metric_history(run.id, name), key=lambda p: p.step)] == [0, 3, 6]
        references = client.get_metric_history(run.id, f"{name}_raw_pixels")
        assert len({p.value for p in references}) == 1
        assert len(references) == 3
    best = best_step(curve, "knn")
    assert best is not None
    tagged = [name for name, model in models.items() if "vitrail.best" in model.tags]
    assert tagged == [f"t-step{best[0]}"]
    assert client.get_run(run.id).data.metrics["report/best_step"] == best[0]
    pictures = [artifact.path for artifact in client.list_artifacts(run.id, "images")]
    for step in (0, 3, 6):
        for key in ("crops", "pca"):
            assert any(re.match(rf"images/{key}\W+step\W{step}\W", path) for path in pictures), pictures
