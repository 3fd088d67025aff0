"""Sets of robustness: classes by name, a choice among the set's classes alone, and errors by corruption."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.benchmark.features.contenders import Contender
from components.benchmark.measured import Measured, Setup
from components.benchmark.methods.outcome import Outcome
from components.benchmark.methods.protocol import load_protocol
from components.benchmark.params import BenchmarkStageParams
from components.benchmark.robust import commonest, measure_robust
from components.errors import VitrailError
from components.evaluation.features.extract import Extractor, extract
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.image_level.robustness import among, among_linear
from components.evaluation.sets.benchmarks import BenchmarksFile, load_benchmark
from components.evaluation.sets.robustness_set import RobustSet, load_robustness
from components.evaluation.statistics.corruptions import ALEXNET, corruption_error, mean_corruption_error
from components.params import load_params, parse_params

ROOT = Path(__file__).resolve().parents[4]
COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}


def write(path: Path, colour: tuple[int, ...], noise: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    level = np.clip(np.array(colour) + np.random.default_rng(noise).integers(-40, 40, (8, 8, 3)), 0, 255)
    file = io.BytesIO()
    Image.fromarray(level.astype(np.uint8)).save(file, "PNG")
    path.write_bytes(file.getvalue())


@pytest.fixture
def file(tmp_path: Path) -> dict[str, Any]:
    for name, colour in COLOURS.items():
        for number in range(8):
            write(tmp_path / "base" / name / f"{number}.png", colour, number)
    for name in ("red", "blue"):
        for number in range(3):
            write(tmp_path / "other" / name / f"{number}.png", COLOURS[name], 90 + number)
        write(tmp_path / "c/fog/1" / name / "0.png", COLOURS[name], 50)
        write(tmp_path / "c/fog/5" / name / "0.png", COLOURS["red"], 51)
        write(tmp_path / "c/blur/1" / name / "0.png", COLOURS[name], 52)
    return {
        "base": {"kind": "folder", "path": str(tmp_path / "base"), "held_out": 0.25},
        "other": {"kind": "robustness", "of": "base", "path": str(tmp_path / "other")},
        "c": {"kind": "robustness", "of": "base", "path": str(tmp_path / "c"), "layout": "corruptions"},
    }


def test_classes_are_those_of_the_benchmark(file: dict[str, Any], tmp_path: Path) -> None:
    known = parse_params(file, BenchmarksFile, "here")
    base = load_benchmark("base", known.benchmarks["base"])
    ours = load_robustness("other", known.robustness["other"], base)
    assert ours.pictures.labels["class"].tolist() == [0, 0, 0, 2, 2, 2]
    assert ours.allowed.tolist() == [0, 2]
    kept = load_benchmark("other", known.benchmarks["other"])  # as dedup reads it
    assert kept.kept_out("test").all()
    (tmp_path / "other/red").rename(tmp_path / "other/rde")
    with pytest.raises(VitrailError, match=r"'rde' is no class of base.*red"):
        load_robustness("other", known.robustness["other"], base)
    named = parse_params(file | {"other": file["other"] | {"names": {"rde": "red"}}}, BenchmarksFile, "here")
    assert load_robustness("other", named.robustness["other"], base).allowed.tolist() == [0, 2]
    with pytest.raises(VitrailError, match="'bsae' is no benchmark with classes"):
        parse_params(file | {"other": file["other"] | {"of": "bsae"}}, BenchmarksFile, "here")
    with pytest.raises(VitrailError, match="task 'colour' is none of base"):
        load_robustness("other", known.robustness["other"].model_copy(update={"task": "colour"}), base)


def test_a_classifier_chooses_among_the_sets_classes_alone() -> None:
    train = LabelledFeatures(np.eye(3, dtype=np.float32).repeat(4, 0), np.arange(3).repeat(4))
    near_one = np.array([[0.3, 1.0, 0.2], [0.2, 1.0, 0.3]], np.float32)  # class 1 is nearest, and not allowed
    assert among(train, near_one, np.array([0, 2]), 4).tolist() == [0, 2]
    assert among_linear(train, near_one, np.array([0, 2]), 1.0, 100).tolist() == [0, 2]
    with pytest.raises(VitrailError, match="no class of the set has a training image"):
        among(train, near_one, np.array([7]), 4)


def test_severities_count_alike_within_a_corruption() -> None:
    right = np.array([True, False, True, True, True])
    kinds = [("fog", "1"), ("fog", "1"), ("fog", "2"), ("blur", "1"), ("blur", "1")]
    assert corruption_error(right, kinds) == {"blur": 0.0, "fog": 0.25}


def test_the_corruption_errors_are_those_published_for_a_resnet_50() -> None:
    # Top-1 accuracy on ImageNet-C and the corruption error that another evaluation of the same network printed.
    published = {
        "brightness": (68.02, 56.64), "contrast": (39.06, 71.43), "defocus_blur": (38.75, 74.71), "fog": (45.83, 66.11),
        "elastic_transform": (45.25, 84.75), "frost": (38.14, 74.84), "gaussian_noise": (29.29, 79.77),
        "glass_blur": (26.79, 88.61), "impulse_noise": (23.81, 82.58),
    }  # fmt: skip
    for what, (accuracy, error) in published.items():
        assert 100 * (100 - accuracy) / ALEXNET[what] == pytest.approx(error, abs=0.01)
    ours = {what: error / 100 for what, error in ALEXNET.items()}
    assert mean_corruption_error(ours) == pytest.approx(1)
    assert mean_corruption_error(ours | {"fog": 0.0, "spatter": 1.0}) == pytest.approx(14 / 15)


def test_mce_needs_every_corruption_and_severity(file: dict[str, Any], tmp_path: Path) -> None:
    for number, what in enumerate([*ALEXNET, "spatter"]):
        for severity in range(1, 6):
            write(tmp_path / "all" / ("blur" if number % 2 else "extra") / what / str(severity) / "red/0.png", (9,), 1)
    spec = {"kind": "robustness", "of": "base", "path": str(tmp_path / "all"), "layout": "corruptions"}

    def load(**more: str) -> RobustSet:
        known = parse_params(file | {"all": spec | {"reference": "alexnet"} | more}, BenchmarksFile, "here")
        return load_robustness("all", known.robustness["all"], load_benchmark("base", known.benchmarks["base"]))

    assert load().mce
    shutil.rmtree(tmp_path / "all/blur/snow/3")
    with pytest.raises(VitrailError, match="benchmark all: snow has 4 severities"):
        load()
    shutil.rmtree(tmp_path / "all/blur")
    with pytest.raises(VitrailError, match=r"no corruption 'shot_noise' \(7 of 15 are missing\)"):
        load()
    with pytest.raises(VitrailError, match="only `layout: corruptions` has a mean corruption error"):
        load(layout="classes")


def test_contenders_are_scored_on_every_set(file: dict[str, Any]) -> None:
    known = parse_params(file, BenchmarksFile, "here")
    base = load_benchmark("base", known.benchmarks["base"])
    mean = Extractor(8, 1.0, lambda batch: batch.reshape(len(batch), -1, 3).mean(1).astype(np.float32))
    one = Contender("mean colour", "checkpoint", mean, {})
    features = extract({one.name: mean}, base.images, 8)
    right = {one.name: {("class", "linear"): Outcome(np.ones(6, bool), 1.0)}}
    measured = Measured(base, [one], [], right=right)
    protocol, params = (
        load_protocol(ROOT / "params", "quick"),
        load_params(ROOT / "params/benchmark.yaml", BenchmarkStageParams),
    )
    sets = [load_robustness(name, spec, base) for name, spec in known.robustness.items()]
    other, corrupted = (measure_robust(measured, features, robust, Setup(params, protocol)) for robust in sets)
    assert {(score.benchmark, score.method, score.accuracy) for score in other.scores} == {
        ("other", "knn20", 100.0),
        ("other", "linear", 100.0),
    }
    assert {figure.method: figure.value for figure in corrupted.ranked if "linear" in figure.method} == {
        "linear_mean": 12.5,
        "linear_blur": 0.0,
        "linear_fog": 25.0,
    }
    assert commonest(base, sets[0]) == {"class": 50.0}
