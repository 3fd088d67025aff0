"""The stage on a few real photographs and tiny networks: files, table, LoggedModels, and its error lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from components.benchmark.features.contenders import find_checkpoints, gather
from components.benchmark.methods.protocol import load_protocol
from components.benchmark.pages.pictures import SHIPPED
from components.benchmark.params import BenchmarkStageParams
from components.benchmark.run import main
from components.errors import VitrailError, run_cli
from components.evaluation.sets.benchmarks import BenchmarksFile, ElpvParams, load_benchmark
from components.learning.export import (
    ModelCard,
    StartedFrom,
    export_model,
    load_backbone,
    load_card,
    weights_digest,
)
from components.learning.vit import VisionTransformer, ViTConfig
from components.params import load_params
from components.release.weights.load import weights_digests

ROOT = Path(__file__).resolve().parents[3]
VIT = ViTConfig(image_size=32, patch_size=8, embed_dim=24, depth=2, heads=2)


def export(folder: Path, kind: str, preset: str, vit: ViTConfig = VIT, poison: bool = False) -> None:
    model = VisionTransformer(vit)
    model.init_weights(torch.Generator().manual_seed(len(preset)))
    if poison:
        with torch.no_grad():
            model.norm.bias[0] = float("nan")
    card: dict[str, Any] = {"kind": kind, "preset": preset, "vit": vit, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    export_model(
        folder / preset,
        model.state_dict(),
        ModelCard(**card, image_size=32, step=10, params_fingerprint="f", data_digest="d"),
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints, two of one shape, and 120 solar cells as a user's Parquet."""
    root = tmp_path_factory.mktemp("benchmark")
    export(root / "pretrain", "pretrain", "vitt")
    export(root / "pretrain", "pretrain", "other")
    export(root / "distill", "distill", "vitxt", VIT.model_copy(update={"depth": 1}))
    cells = load_benchmark("elpv", ElpvParams(kind="elpv"))
    rows = np.random.default_rng(0).permutation(2624)[:120]
    pq.write_table(
        pa.table(
            {
                "image": [cells.images.bytes(int(row)) for row in rows],
                "type": [cells.class_names["type"][cells.labels["type"][row]] for row in rows],
                "split": ["test"] * 40 + ["train"] * 80,
            }
        ),
        root / "cells.parquet",
    )
    benchmarks = {"cells": {"kind": "parquet", "path": str(root / "cells.parquet"), "labels": ["type"]}}
    (root / "benchmarks.yaml").write_text(yaml.safe_dump(benchmarks))
    (root / "tracking.yaml").write_text(
        f"uri: sqlite:///{root}/mlflow.db\nexperiment: vitrail\nsystem_metrics: false\n"
    )
    return root


def command(workspace: Path, *more: str, checkpoints: tuple[str, ...] = ("pretrain", "distill")) -> list[str]:
    return [
        "run",
        *("--params", str(ROOT / "params/benchmark.yaml"), "--benchmarks", str(workspace / "benchmarks.yaml")),
        *("--checkpoints", *[str(workspace / folder) for folder in checkpoints]),
        *("--out", str(workspace / "out"), "--report", str(workspace / "reports/benchmark.json")),
        *("--tracking", str(workspace / "tracking.yaml")),
        *("--set", "pca.image_size=64", "--set", "pca.photographs=[coffee]", "--set", "pca.labelled=2"),
        *(
            "--set",
            "linear.costs=[0.01]",
            "--set",
            "few_shot.per_class=[5]",
            "--set",
            "copies.images=6",
            "--set",
            "copies.distractors=3",
        ),
        *more,
    ]


def test_a_model_that_went_on_from_another_is_compared_with_it(tmp_path: Path) -> None:
    export(tmp_path / "pretrain", "pretrain", "vitt")
    export(tmp_path / "continue", "continue", "vitt")
    place = tmp_path / "continue/vitt"
    init = StartedFrom(source="renamed since", sha256=weights_digests(tmp_path / "pretrain/vitt"))
    (place / "model.json").write_text(load_card(place).model_copy(update={"init": init}).model_dump_json())
    params = load_params(ROOT / "params/benchmark.yaml", BenchmarkStageParams)
    features = load_protocol(ROOT / "params", params.protocol).params.features

    def baselines(*folders: str) -> dict[str, tuple[str, ...]]:
        found = gather([tmp_path / folder for folder in folders], features, params.baselines, "cpu")
        return {one.name: one.baselines for one in found if one.kind == "checkpoint"}

    both = baselines("pretrain", "continue")
    assert both["pretrain vitt"] == ("raw pixels", "untrained vitt")
    assert both["continue vitt"] == ("raw pixels", "untrained vitt", "pretrain vitt")
    assert baselines("continue")["continue vitt"] == ("raw pixels", "untrained vitt")


@pytest.fixture(scope="module")
def compared(workspace: Path) -> Path:
    patch = pytest.MonkeyPatch()
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(command(workspace)) == 0
    patch.undo()
    return workspace


SMALL = ["linear.costs=[0.01]", "few_shot.per_class=[5]", "copies.images=6", "copies.distractors=3"]
MODELS = [
    "raw pixels",
    "patch k-means",
    "untrained other",
    "untrained vitxt",
    "pretrain other",
    "pretrain vitt",
    "distill vitxt",
]


def test_every_contender_is_scored_on_held_out_images(compared: Path) -> None:
    content = json.loads((compared / "out/scores.json").read_text())
    assert content["benchmarks"]["cells"]["test"] == 40
    scores = content["scores"]
    assert list(dict.fromkeys(score["model"] for score in scores)) == MODELS
    assert {score["method"] for score in scores} == {"knn10", "knn20", "linear"}
    protocol = load_protocol(ROOT / "params", "demo", SMALL)
    assert content["protocol"] == {"name": "demo", "version": 3, "digest": protocol.digest}
    assert {score["protocol"] for score in scores} == {protocol.label}
    assert set(content["models"]) == {name for name in MODELS if name.startswith(("pretrain", "distill"))}
    vitxt, _ = load_backbone(compared / "distill/vitxt")
    assert content["models"]["distill vitxt"]["weights"] == weights_digest(vitxt)
    few = {(row["model"], row["method"]): row for row in content["few_shot"]}
    both = ("knn20", "linear")
    asked = [f"fewshot5_{by}{measure}" for by in both for measure in ("", "_balanced")] + [
        f"{by}_balanced" for by in both
    ]
    assert set(few) == {(name, method) for name in MODELS for method in asked}
    assert {(row["per_class"], row["fewest"]) for row in few.values()} == {(5, 5), (None, None)}
    kinds = load_benchmark("cells", load_params(compared / "benchmarks.yaml", BenchmarksFile).benchmarks["cells"])
    rights = pq.read_table(compared / "out/outcomes.parquet").to_pylist()
    for row in rights:
        if row["method"] in both:
            right, truth = np.array(row["right"]), kinds.labels["type"][kinds.test]
            share = 100 * np.mean([right[truth == one].mean() for one in np.unique(truth)])
            assert few[row["model"], f"{row['method']}_balanced"]["value"] == pytest.approx(share, abs=0.001)
    for score in scores:
        assert score["test_images"] == 40
        assert score["low"] <= score["accuracy"] <= score["high"]
        against = [gap["against"] for gap in score["differences"]]
        if score["kind"] == "checkpoint":
            twin = "untrained vitxt" if "vitxt" in score["model"] else "untrained other"
            assert against == ["raw pixels", twin, "patch k-means"]
        else:
            assert against == []
    ranked = {(row["model"], row["method"]): row for row in content["ranking"]}
    assert {model for model, _ in ranked} == set(MODELS)
    assert all(0 < row["value"] <= 100 for row in content["ranking"])
    assert ranked["pretrain vitt", "micro_ap"]["cases"] == 9
    by_name = {(s["model"], s["method"]): s for s in scores}
    ours, raw = by_name["pretrain vitt", "knn20"], by_name["raw pixels", "knn20"]
    assert ours["differences"][0]["value"] == pytest.approx(ours["accuracy"] - raw["accuracy"], abs=0.002)


def test_the_same_scores_stand_in_table_parquet_and_report(compared: Path) -> None:
    scores = json.loads((compared / "out/scores.json").read_text())["scores"]
    flat = pq.read_table(compared / "out/scores.parquet").to_pandas()
    report = json.loads((compared / "reports/benchmark.json").read_text())
    table = (compared / "out/table.md").read_text()
    assert len(flat) == sum(max(1, len(score["differences"])) for score in scores)
    for score in scores:
        same = flat[(flat["model"] == score["model"]) & (flat["method"] == score["method"])]
        assert (same["accuracy"] == score["accuracy"]).all()
        assert report[score["model"]]["cells"]["type"][score["method"]] == score["accuracy"]
        if score["method"] == "knn20":
            assert f"{score['accuracy']:.1f} ({score['low']:.1f} to {score['high']:.1f})" in table
    assert "type, 20-NN" in table
    assert "| model | by | 5 a class | all labels |" in table
    assert "pretrain vitt - untrained other" in table


def test_pictures_are_made_of_every_checkpoint_and_untouched_by_others(compared: Path) -> None:
    found = {path.name: np.asarray(Image.open(path)) for path in (compared / "out/pca").iterdir()}
    assert sorted(found) == sorted(
        f"{model.replace(' ', '-')}-{group}.png" for model in MODELS[4:] for group in ("photographs", "cells")
    )
    assert found["pretrain-vitt-photographs.png"].shape == (128, 64, 3)
    assert found["distill-vitxt-cells.png"].shape == (128, 128, 3)
    assert all(len(np.unique(image[64:].reshape(-1, 3), axis=0)) > 5 for image in found.values())


def test_each_contender_is_one_logged_model_with_the_same_metrics(
    compared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = MlflowClient(tracking_uri=f"sqlite:///{compared}/mlflow.db")
    experiment = client.get_experiment_by_name("vitrail").experiment_id
    first = client.search_logged_models([experiment])
    assert {model.name for model in first} == set(MODELS)
    digest = json.loads((compared / "out/scores.json").read_text())["benchmarks"]["cells"]["digest"]
    for model in first:
        assert {m.key for m in model.metrics} == {
            *("cells/type/knn10", "cells/type/knn20", "cells/type/linear"),
            *(f"cells/type/fewshot5_{by}{end}" for by in ("knn20", "linear") for end in ("", "_balanced")),
            *("cells/type/knn20_balanced", "cells/type/linear_balanced"),
            *("cells/type/map", "cells/type/recall1", "cells/type/recall5", "cells/copies/micro_ap"),
        }
        assert model.tags["vitrail.protocol"] == "demo v3"
        assert len(model.tags["vitrail.protocol_digest"]) == 64
        assert {m.dataset_digest for m in model.metrics} == {digest[:36]}
    (run,) = client.search_runs([experiment])
    assert {a.path for a in client.list_artifacts(run.info.run_id, "benchmark")} >= {"benchmark/table.md"}

    before = (compared / "out/scores.json").read_bytes()
    assert main(command(compared)) == 0  # again: the same files, no further models
    assert (compared / "out/scores.json").read_bytes() == before
    assert len(client.search_logged_models([experiment])) == len(first)
    assert "pretrain vitt" in capsys.readouterr().out


def test_a_protocol_that_changed_without_a_new_version_writes_over_nothing(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (compared / "out/scores.json").read_bytes()
    assert run_cli(main, command(compared, "--set", "knn.temperature=0.1")) == 1
    assert "protocol demo v3 has changed since" in capsys.readouterr().err
    assert (compared / "out/scores.json").read_bytes() == before


def test_no_checkpoint_is_one_clear_line(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "empty").mkdir(exist_ok=True)
    assert run_cli(main, command(workspace, checkpoints=("empty",))) == 1
    assert "no model.json in" in capsys.readouterr().err
    assert run_cli(main, command(workspace, checkpoints=("pretrain", "gone"))) == 1
    assert "gone: no such folder of checkpoints" in capsys.readouterr().err
    assert find_checkpoints([workspace / "pretrain/vitt"]) == [workspace / "pretrain/vitt"]


def test_a_diverged_checkpoint_is_named_and_nothing_is_written(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    export(workspace / "diverged", "pretrain", "nan", poison=True)
    arguments = command(workspace, checkpoints=("diverged",))
    arguments[arguments.index("--out") + 1] = str(tmp_path / "out")
    assert run_cli(main, arguments) == 1
    assert "NaN or infinite numbers in norm.bias" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_choosing_features_reads_the_training_side_alone(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.evaluation.sets import benchmarks

    read: set[int] = set()
    column = benchmarks.ImageColumn
    original = column.rgb

    def spy(self: Any, row: int) -> Any:
        read.add(row)
        return original(self, row)

    monkeypatch.setattr(column, "rgb", spy)
    files = ["--params", str(ROOT / "params/benchmark.yaml"), "--benchmarks", str(workspace / "benchmarks.yaml")]
    found = ["--checkpoints", str(workspace / "pretrain/vitt"), "--image-sizes", "32", "48"]
    assert main(["choose", *files, *found, "--crops", "1.0", "0.5"]) == 0
    assert read == set(range(40, 120))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * 2 * 3
    accuracies = [float(line.split()[-1]) for line in lines[1:]]
    assert accuracies == sorted(accuracies, reverse=True)


def test_the_shipped_parameters_hold() -> None:
    params = load_params(ROOT / "params/benchmark.yaml", BenchmarkStageParams)
    assert params.protocol == "demo"
    assert load_protocol(ROOT / "params", params.protocol).params.knn.shown == 20
    assert set(params.pca.photographs) <= set(SHIPPED)
    with pytest.raises(VitrailError, match="shown: 7 is not among k"):
        load_protocol(ROOT / "params", "demo", ["knn.shown=7"])


def test_without_labels_the_training_images_show_what_a_network_makes_of_them(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "benchmarks.yaml").write_text("# none\n")
    pictures = [np.random.default_rng(i).integers(0, 256, (40, 48, 3), np.uint8) for i in range(12)]
    monkeypatch.setattr("components.benchmark.stage.seed_images", lambda *given: pictures[: given[-1]])
    given = command(workspace, "--set", "own.images=12", "--set", "pca.own=3", "--set", "pca.photographs=[]")
    given[given.index("--benchmarks") + 1] = str(tmp_path / "benchmarks.yaml")
    given[given.index("--out") + 1] = str(tmp_path / "out")
    given[given.index("--report") + 1] = str(tmp_path / "report.json")
    given += [
        "--curated",
        "data/curate",
        "--manifest",
        "manifest",
        "--storage",
        str(ROOT / "params/storage.yaml"),
    ]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "No labelled images in params/benchmarks.yaml, so no scores" in said
    assert "features of 12 of your own images" in said
    assert "| pretrain vitt" in said
    content = json.loads((tmp_path / "out/scores.json").read_text())
    assert content["scores"] == []
    assert set(content["own_images"]) == set(MODELS) - {"raw pixels", "patch k-means"}
    assert sorted(path.name for path in (tmp_path / "out/pca").iterdir()) == [
        "distill-vitxt-own.png",
        "pretrain-other-own.png",
        "pretrain-vitt-own.png",
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 < report["pretrain vitt"]["own images"]["feature_rank"] <= 11


def test_features_that_are_all_alike_show_as_collapsed() -> None:
    from components.benchmark.features.own import _figures

    generator = np.random.default_rng(0)
    alike = np.ones((20, 8), np.float32) + 1e-4 * generator.normal(size=(20, 8)).astype(np.float32)
    spread = generator.normal(size=(200, 8)).astype(np.float32)
    assert _figures(alike)["mean_cosine"] > 0.99
    assert _figures(alike)["feature_std"] < 0.01
    assert abs(_figures(spread)["mean_cosine"]) < 0.05
    assert _figures(spread)["feature_rank"] > 7
