"""Runs side by side: a column holds one protocol and one set of images, tests are corrected, the gate names rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from components.benchmark.methods.figure import Figure
from components.benchmark.methods.label_efficiency import FewFigure
from components.benchmark.methods.outcome import Outcome, outcome_table, paired_table
from components.benchmark.pages.compare import divided, missed, paired_tests
from components.benchmark.pages.page import page
from components.benchmark.pages.results import load_results
from components.benchmark.run import main
from components.errors import VitrailError, run_cli
from components.evaluation.sets.benchmarks import Benchmark
from components.evaluation.sets.labelled_set import ImageFiles
from components.evaluation.statistics.gate import GateParams, GateRow, shortfalls
from components.params import load_params, parse_params

ROOT = Path(__file__).resolve().parents[4]
ACCURACY = {"a": 0.9, "b": 0.3}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write(folder: Path, models: dict[str, float], digest: str = "d" * 64, protocol: str = "p" * 64) -> Path:
    folder.mkdir()
    outcomes = {name: {("type", "knn20"): Outcome(np.arange(40) < 40 * share)} for name, share in models.items()}
    scores = [
        {"model": name, "kind": "checkpoint", "benchmark": "cells", "task": "type", "method": "knn20"}
        | {"accuracy": 100 * share, "low": 0.0, "high": 100.0, "protocol": f"quick v1 ({protocol[:8]})"}
        for name, share in models.items()
    ]
    content: dict[str, Any] = {
        "protocol": {"name": "quick", "version": 1, "digest": protocol},
        "benchmarks": {"cells": {"digest": digest}},
        "scores": scores,
    }
    (folder / "scores.json").write_text(json.dumps(content))
    pq.write_table(outcome_table({"cells": outcomes}), folder / "outcomes.parquet")
    return folder


def test_two_runs_in_one_table_with_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write(tmp_path / "x", ACCURACY), write(tmp_path / "y", {"a": 0.9, "<c>": 0.5})]
    found = load_results(folders)
    assert found.models == ["a", "b", f"a ({tmp_path / 'y'})", "<c>"]
    tests = paired_tests(found)
    assert len(tests) == 6
    pair = tests[0]
    assert (pair.ours, pair.theirs, round(pair.difference)) == ("a", "b", 60)
    assert pair.p < pair.corrected < 0.001
    assert tests[1].p == tests[1].corrected == 1.0  # the same model twice
    assert "&lt;c&gt;" in page(found, tests)
    assert "<c>" not in page(found, tests)
    assert main(["compare", *map(str, folders), "--html", str(tmp_path / "page.html")]) == 0
    assert "| b | 30.0 (0.0 to 100.0) |" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def add_depth(folder: Path, errors: dict[str, float]) -> Path:
    """Adds RMSE of 30 pictures to what :func:`write` wrote, with curves of training."""
    noise = np.random.default_rng(0).normal(0, 0.05, 30)
    figures = [
        Figure(name, "checkpoint", "nyu", "depth", "lin4_rmse", error, error - 0.1, error + 0.1, 30,
               "quick v1 (pppppppp)", "m", True, (*(error + noise[:29]).tolist(), None))
        for name, error in errors.items()
    ]  # fmt: skip
    content = json.loads((folder / "scores.json").read_text())
    content["dense"] = [figure.plain() for figure in figures]
    content["benchmarks"]["nyu"] = {"digest": "n"}
    content["training"] = {"a": [{"step": s, "knn": 0.5 + s / 100, "miou": 0.4 - s / 200} for s in (0, 10, 20)]}
    (folder / "scores.json").write_text(json.dumps(content))
    pq.write_table(paired_table(figures), folder / "paired.parquet")
    return folder


def test_other_metrics_keep_their_unit_and_their_direction(tmp_path: Path) -> None:
    found = load_results([add_depth(write(tmp_path / "x", ACCURACY), {"a": 0.41, "b": 0.52})])
    assert found.columns[-1] == ("nyu", "depth", "lin4_rmse")
    (test,) = [test for test in paired_tests(found) if test.column[0] == "nyu"]
    assert test.difference == pytest.approx(-0.11)
    assert test.corrected < 0.001
    made = page(found, paired_tests(found))
    assert "<th>nyu depth lin. 4, RMSE [m]</th>" in made
    assert "<td>0.410 (0.310 to 0.510)</td>" in made
    assert made.count("<polyline") == 2
    row = {"benchmark": "nyu", "task": "depth", "method": "lin4_rmse"}
    rows = [GateRow(**row, at_most=0.45), GateRow(**row, at_least=0.3, model="a")]
    assert shortfalls(found.scores, GateParams(rows=rows)) == [
        "b, nyu/depth/lin4_rmse: 0.520 m, at most 0.45 is asked for",
        "a, nyu/depth/lin4_rmse: less is better; set at_most",
    ]
    assert shortfalls(found.scores, GateParams(rows=rows[:1]), only="a") == []
    with pytest.raises(VitrailError, match="give one of at_least and at_most"):
        parse_params({"rows": [row]}, GateParams, "gate.yaml")


def test_label_efficiency_has_a_table_and_a_curve_of_its_own_and_can_be_asked_by_a_gate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "x", ACCURACY)
    content = json.loads((folder / "scores.json").read_text())
    content["few_shot"] = [
        FewFigure(
            Figure(name, "checkpoint", "cells", "type", f"fewshot{count}_linear_balanced", 50 + count * share, 40.0,
                   90.0, 5, "quick v1 (pppppppp)"),
            "linear", count, True, min(count, 7),
        ).plain()
        for name, share in ACCURACY.items() for count in (5, 10)
    ]  # fmt: skip
    # As it was before figures of few labels had a method: left out.
    content["few_shot"].append({"model": "a", "benchmark": "cells", "task": "type", "per_class": 5, "value": 1.0})
    (folder / "scores.json").write_text(json.dumps(content))
    found = load_results([folder])
    assert found.columns == [("cells", "type", "knn20")]
    made = page(found, paired_tests(found))
    assert "<th>10 a class (least 7)</th><th>all labels</th>" in made
    assert made.count("<polyline") == 2
    row = {"benchmark": "cells", "task": "type", "method": "fewshot10_linear_balanced", "at_least": 55.0}
    assert shortfalls(found.scores, GateParams(rows=[GateRow(**row)])) == [
        "b, cells/type/fewshot10_linear_balanced: 53.0, at least 55 is asked for"
    ]
    assert main(["compare", str(folder)]) == 0
    assert "| a | linear | 54.5 (40.0 to 90.0) | 59.0 (40.0 to 90.0) |  |" in capsys.readouterr().out


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="left out: no Chromium")
def test_a_browser_shows_tables_curves_pca_pictures_and_worst_errors(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    folder = add_depth(write(tmp_path / "x", ACCURACY), {"a": 0.41, "b": 0.52})
    (folder / "pca").mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (42, 20, 24, 3)).astype(np.uint8)
    for model in ACCURACY:
        Image.fromarray(pictures[0]).save(folder / f"pca/{model}-cells.png")
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    labels = {"type": np.arange(42) % 2}
    test = np.arange(42) >= 2
    files = ImageFiles([tmp_path / f"{number}.png" for number in range(42)])
    keys = [f"cells/{number}" for number in range(42)]
    cells = Benchmark("cells", keys, files, labels, {"type": ["mono", "<b>poly"]}, test)
    found = load_results([folder])
    (tmp_path / "page.html").write_text(page(found, paired_tests(found), {"cells": cells}))
    with sync_playwright() as playwright:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        shown = browser.new_page()
        asked = list[str]()
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto((tmp_path / "page.html").as_uri())
        for heading in ("Checkpoints compared", "Paired tests", "Training", "PCA of patch features", "Errors"):
            assert shown.get_by_role("heading", name=heading, exact=True).is_visible()
        assert shown.get_by_role("cell", name="90.0 (0.0 to 100.0)").first.is_visible()
        assert shown.locator("svg polyline").count() == 2
        assert shown.locator("img").count() == 2 + 4 + 8  # PCA; images that a, and that b, gets wrong
        assert shown.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert shown.get_by_text("<b>poly").count() > 0
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        shown.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        browser.close()
    assert Image.open(tmp_path / "page.png").height > 800


def test_images_that_only_one_model_misses_come_first(tmp_path: Path) -> None:
    found = load_results([write(tmp_path / "x", {"a": 0.5, "b": 0.9, "c": 0.8})])
    assert missed(found, "a", ("cells", "type", "knn20"), 20) == list(range(20, 40))
    assert missed(found, "b", ("cells", "type", "knn20"), 2) == [36, 37]


def test_a_source_is_a_folder_of_results_or_a_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", ACCURACY)
    sources = [str(folder), "hub.pth", "https://x/y.pth#sha256=00", "s3://bucket/model", "models:/mine@champion"]
    assert divided(sources) == ([folder], sources[1:])


def test_models_are_measured_and_stand_beside_earlier_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from components.benchmark import compare_command

    measured: list[object] = []

    def measure(arguments: Any, models: list[str], report: object) -> str:
        measured.append((models, report))
        write(arguments.out, {"imported vits14": 0.7})
        return ""

    monkeypatch.setattr(compare_command, "measure", measure)
    folder = write(tmp_path / "x", ACCURACY)
    out = ["--out", str(tmp_path / "out")]
    assert main(["compare", str(folder), "dinov2_vits14_pretrain.pth", "models:/mine@champion", *out]) == 0
    assert measured == [(["dinov2_vits14_pretrain.pth", "models:/mine@champion"], None)]
    assert "| imported vits14 | 70.0 (0.0 to 100.0) |" in capsys.readouterr().out


def test_two_protocols_never_share_a_column(tmp_path: Path) -> None:
    first = write(tmp_path / "x", ACCURACY)
    with pytest.raises(VitrailError, match=r"quick v1 \(pppppppp\).*quick v1 \(qqqqqqqq\).*cannot share a column"):
        load_results([first, write(tmp_path / "y", ACCURACY, protocol="q" * 64)])
    with pytest.raises(VitrailError, match="different images or labels"):
        load_results([first, write(tmp_path / "z", ACCURACY, digest="e" * 64)])
    with pytest.raises(VitrailError, match="no scores of the benchmark stage"):
        load_results([tmp_path / "gone"])


def test_the_gate_fails_with_the_rows_that_fall_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "x", ACCURACY)
    row = {"benchmark": "cells", "task": "type", "method": "knn20", "at_least": 50.0}
    rows = [row, row | {"model": "a", "protocol": "quick v2"}, row | {"model": "gone"}]
    found = shortfalls(load_results([folder]).scores, GateParams(rows=rows))
    assert found == [
        "b, cells/type/knn20: 30.0, at least 50 is asked for",
        "a, cells/type/knn20: measured by quick v1 (pppppppp), not quick v2",
        "gone, cells/type/knn20: nothing was measured; at least 50 is asked for",
    ]
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump({"rows": [row]}))
    assert run_cli(main, ["compare", str(folder), "--gate", str(tmp_path / "gate.yaml")]) == 1
    assert "b, cells/type/knn20: 30.0" in capsys.readouterr().err
    assert shortfalls(load_results([folder]).scores, load_params(ROOT / "params/gate.yaml", GateParams)) == []
