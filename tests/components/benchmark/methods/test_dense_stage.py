"""The stage on scikit-image's own pictures: a stained tissue with masks, and a stereo pair with measured depth."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from components.benchmark.features.contenders import gather
from components.benchmark.features.spread import Placement
from components.benchmark.measure import measure_dense
from components.benchmark.measured import Setup
from components.benchmark.methods import spread_dense
from components.benchmark.methods.protocol import load_protocol
from components.benchmark.params import BenchmarkStageParams
from components.benchmark.run import main
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile
from components.executor import ExecutorParams
from components.learning.export import ModelCard, export_model
from components.learning.vit import VisionTransformer, ViTConfig
from components.params import load_params
from components.tracking import null_run

ROOT = Path(__file__).resolve().parents[4]
VIT = ViTConfig(image_size=32, patch_size=8, embed_dim=24, depth=4, heads=2)


def tiles(folder: Path, image: np.ndarray, values: np.ndarray, kind: str) -> None:
    """Squares of 100 px of a picture: those of its left two thirds to fit on, the others to score."""
    for number, (top, left) in enumerate(
        (top, left) for top in range(0, image.shape[0] - 99, 100) for left in range(0, image.shape[1] - 99, 100)
    ):
        side = "" if left < image.shape[1] * 2 // 3 - 99 else "test_"
        for name, part in ((f"{side}images", image), (f"{side}{kind}", values)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            cut = part[top : top + 100, left : left + 100]
            if cut.dtype == np.float32:
                np.save(folder / name / f"{number:02d}.npy", cut)
            else:
                Image.fromarray(cut).save(folder / name / f"{number:02d}.png")


def entry(folder: Path, kind: str) -> dict[str, object]:
    keys = ("images", kind, "test_images", f"test_{kind}")
    return {"kind": kind} | {key: str(folder / key) for key in keys}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skimage import color, data

    root = tmp_path_factory.mktemp("dense")
    tissue = data.immunohistochemistry()
    brown = color.rgb2hed(tissue)[..., 2]
    stained = (brown > np.quantile(brown, 0.7)).astype(np.uint8)
    stained[:100, :100] = 255  # not labelled
    tiles(root / "tissue", tissue, stained, "masks")
    left, _, disparity = data.stereo_motorcycle()
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = (994.978 * 0.193001 / (disparity + 31.086)).astype(np.float32)  # of the pair's own calibration
    depth[~np.isfinite(disparity)] = np.nan
    tiles(root / "motorcycle", left, depth, "depths")
    sets = {"tissue": entry(root / "tissue", "masks"), "motorcycle": entry(root / "motorcycle", "depths")}
    sets["motorcycle"] |= {"per_metre": 1.0}
    (root / "benchmarks.yaml").write_text(yaml.safe_dump(sets))
    protocol = yaml.safe_load((ROOT / "params/protocols/dense512.yaml").read_text())
    protocol["segmentation"] |= {"image_size": 64, "masks": 100, "stride": 43, "patches": 1500, "samples": 100}
    protocol["depth"] |= {"image_size": 64, "patches": 1500, "samples": 100}
    protocol["depth"]["head"] |= {"bins": 64, "steps": 150, "rate": 0.01}
    protocol["matching"] |= {"image_size": 64, "images": 8, "samples": 100}
    (root / "params/protocols").mkdir(parents=True)
    (root / "params/protocols/small100.yaml").write_text(yaml.safe_dump(protocol))
    params = yaml.safe_load((ROOT / "params/benchmark.yaml").read_text())
    params |= {"protocol": "small100", "own": None, "pca": params["pca"] | {"image_size": 64, "labelled": 2}}
    (root / "params/benchmark.yaml").write_text(yaml.safe_dump(params))
    (root / "tracking.yaml").write_text("uri: sqlite:///unused.db\nexperiment: vitrail\n")
    model = VisionTransformer(VIT)
    model.init_weights(torch.Generator().manual_seed(0))
    card = ModelCard(
        kind="pretrain", preset="tiny", vit=VIT, mean=(0.5,) * 3, std=(0.25,) * 3, image_size=32, step=1,
        params_fingerprint="f", data_digest="d",
    )  # fmt: skip
    export_model(root / "pretrain/tiny", model.state_dict(), card)
    return root


def test_segmentation_depth_and_matching_stand_in_every_table(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.tracking.run", lambda *given: contextlib.nullcontext(null_run()))
    files = ["--params", str(workspace / "params/benchmark.yaml"), "--benchmarks", str(workspace / "benchmarks.yaml")]
    out = ["--out", str(workspace / "out"), "--report", str(workspace / "report.json")]
    found = ["--checkpoints", str(workspace / "pretrain"), "--tracking", str(workspace / "tracking.yaml")]
    assert main(["run", *files, *out, *found]) == 0
    said = capsys.readouterr().out
    assert "tissue: segmentation, depth, propagation, matching" in said
    assert "segmentation, linear on patches, mIoU" in said
    assert "depth, lin. 4, RMSE [m]" in said
    content = json.loads((workspace / "out/scores.json").read_text())
    rows = {(row["model"], row["benchmark"], row["method"]): row for row in content["dense"]}
    assert {model for model, _, _ in rows} == {"raw pixels", "untrained tiny", "pretrain tiny"}
    assert {row["protocol"].split(" ")[0] for row in content["dense"]} == {"small100"}
    for model in ("raw pixels", "pretrain tiny"):
        stained = rows[model, "tissue", "linear_miou"]
        assert stained["low"] <= stained["value"] <= stained["high"]
        assert stained["value"] > 45  # one class everywhere: 35
        assert rows[model, "tissue", "knn_miou"]["value"] > 40
        near = rows[model, "motorcycle", "lin4_rmse"]
        assert (near["unit"], near["lower_is_better"]) == ("m", True)
        assert 0 < near["value"] < 2
        assert 0 < rows[model, "motorcycle", "pck10"]["value"] <= 100
    report = json.loads((workspace / "report.json").read_text())
    assert (
        report["pretrain tiny"]["motorcycle"]["depth"]["lin1_rmse"]
        == rows["pretrain tiny", "motorcycle", "lin1_rmse"]["value"]
    )
    paired = pq.read_table(workspace / "out/paired.parquet").to_pylist()
    assert {len(row["values"]) for row in paired if row["benchmark"] == "tissue" and row["task"] == "segmentation"} == {
        content["benchmarks"]["tissue"]["test"]
    }


def test_workers_that_measure_a_network_each_find_the_same_figures(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards: list[int] = []

    def travelled(task: Any, works: list[Any], params: ExecutorParams) -> Iterator[Any]:
        shards.append(len(works))
        for work in works:
            task_there, work_there = pickle.loads(pickle.dumps((task, work)))
            yield pickle.loads(pickle.dumps(task_there(work_there)))

    monkeypatch.setattr(spread_dense, "map_shards", travelled)
    params = load_params(workspace / "params/benchmark.yaml", BenchmarkStageParams)
    protocol = load_protocol(workspace / "params", "small100", ["matching=null"])
    place = Placement(ExecutorParams(workers=2), "cpu", tmp_path)
    contenders = gather([workspace / "pretrain"], protocol.params.features, params.baselines, "cpu")
    sets = load_params(workspace / "benchmarks.yaml", BenchmarksFile).dense
    there = measure_dense(contenders, "motorcycle", sets["motorcycle"], Setup(params, protocol, "cpu", place))
    assert shards == [3]
    content = json.loads((workspace / "out/scores.json").read_text())  # of one process, by the test above
    here = [row for row in content["dense"] if (row["benchmark"], row["task"]) == ("motorcycle", "depth")]
    about = ("model", "method", "value", "low", "high")
    found = [figure.plain() for figure in there.dense]
    assert [[row[name] for name in about] for row in found] == [[row[name] for name in about] for row in here]
    assert len(found) == 3 * 2 * 3  # models, heads, errors
    assert there.digest == content["benchmarks"]["motorcycle"]["digest"]


def test_the_comparison_opens_as_one_page_and_the_gate_reads_every_metric(workspace: Path, tmp_path: Path) -> None:
    gate = {"benchmark": "motorcycle", "task": "depth", "method": "lin1_rmse", "at_most": 0.0}
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump({"rows": [gate]}))
    given = ["compare", str(workspace / "out"), "--benchmarks", str(workspace / "benchmarks.yaml")]
    with pytest.raises(VitrailError, match=r"pretrain tiny, motorcycle/depth/lin1_rmse: \S+ m, at most 0 is asked for"):
        main([*given, "--html", str(tmp_path / "page.html"), "--gate", str(tmp_path / "gate.yaml")])
    made = (tmp_path / "page.html").read_text()
    assert "<th>tissue segmentation linear on patches, mIoU</th>" in made
    assert made.count("data:image/png;base64,") == 2
    assert "<script" not in made


def test_the_protocols_name_holds_the_size_of_its_masks(workspace: Path, tmp_path: Path) -> None:
    for name in ("dense512", "dense640ms"):
        assert load_protocol(ROOT / "params", name).params.segmentation is not None
    with pytest.raises(VitrailError, match=r"masks are of 480 px, .* must hold '480', as in dense512480"):
        load_protocol(ROOT / "params", "dense512", ["segmentation.masks=480"])
    with pytest.raises(VitrailError, match="must hold 'full'"):
        load_protocol(ROOT / "params", "dense512", ["segmentation.masks=null"])
