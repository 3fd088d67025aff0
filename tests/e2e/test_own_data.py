"""Anybody's folder of pictures through the whole chain by `vitrail init`, `vitrail run` and `vitrail report`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from chain_helpers import Repro, copy_checkout, edit, run
from PIL import Image

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1600)]  # two minutes where nothing else runs

COUNT = 40
# Only so that the test is short: no value here says what the pictures are.
SHORTER = {
    "params/curate.yaml": {"executor.workers": 0},
    "params/pretrain/vitt.yaml": {"vit.embed_dim": 48, "vit.depth": 2, "vit.heads": 3, "run.iterations": 4},
    "params/distill/vitxt.yaml": {"vit.embed_dim": 32, "vit.depth": 1, "run.iterations": 2},
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Repro]:
    """A workspace whose source is a folder with blanks, quotes and a command in its name, after ``vitrail run``."""
    root = tmp_path_factory.mktemp("own")
    photos = root / "my photos; touch caught; it's $(touch caught)"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((96, 80), Image.Resampling.BICUBIC).save(photos / f"photo {number:02d}.jpg", quality=92)
    work = root / "work"
    work.mkdir()
    copy_checkout(work)
    for name, changes in SHORTER.items():
        edit(work / name, changes)
    begun = run(work, "components.cli", "init", str(photos), "--machine", "cpu")
    assert begun.code == 0, begun.text
    return work, run(work, "components.cli", "run", timeout=1500)


def test_two_commands_carry_a_folder_through_every_stage(own: tuple[Path, Repro]) -> None:
    work, done = own
    assert done.code == 0, done.text[-6000:]
    ran = re.findall(r"^== ([\w@]+)$", done.text, re.MULTILINE)
    assert [name for name in ran if name != "inputs"] == [
        "crawl", "curate", "dedup", "pretrain@vitt", "distill@vitxt", "benchmark",
    ]  # fmt: skip
    assert pq.read_table(work / "data/dedup/manifest").num_rows >= 0.9 * COUNT


def test_the_run_ends_in_its_report(own: tuple[Path, Repro]) -> None:
    work, done = own
    report = work / "reports/index.html"
    assert str(report) in done.text
    first = report.read_text()
    for words in (f"{COUNT} image links were found", "No labelled images", "of your own images", "all hold"):
        assert words in first
    assert "has not finished" not in first
    again = run(work, "components.cli", "report", "--no-open")
    assert again.code == 0, again.text
    assert again.text.splitlines()[0] == f"report: {report}"


def test_no_part_of_the_sources_name_was_run(own: tuple[Path, Repro]) -> None:
    work, _ = own
    assert list(work.rglob("caught")) == []


def test_what_is_left_out_is_said_in_a_line_each(own: tuple[Path, Repro]) -> None:
    for line in (
        "no labelled images in params/benchmarks.yaml: nothing is held out of training",
        "no labels to calibrate with (calibration: null)",
        "no queries (retrieval: null): every image that is no copy is kept",
        "images, less than a batch of 64: run.batch 32 instead of 64",
        "No labelled images in params/benchmarks.yaml, so no scores",
    ):
        assert line in own[1].text


def test_photographs_are_trained_in_colour_and_not_turned(own: tuple[Path, Repro]) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{own[0]}/mlflow.db")
    [experiment] = client.search_experiments(filter_string="name = 'vitrail'")
    runs = client.search_runs([experiment.experiment_id])
    [pretrain] = [run for run in runs if run.data.tags.get("vitrail.stage") == "pretrain"]
    given = {name: pretrain.data.params[f"augment.{name}"] for name in ("gray", "hflip", "vflip", "rot90")}
    assert {name: value.lower() for name, value in given.items()} == {
        "gray": "false",
        "hflip": "0.5",
        "vflip": "0.0",
        "rot90": "0.0",
    }
    assert pretrain.data.params["probe.benchmark"].lower() in ("none", "null")


def test_the_benchmark_shows_own_pictures_and_figures_and_none_of_the_projects(own: tuple[Path, Repro]) -> None:
    work, _ = own
    pictures = sorted(path.name for path in (work / "data/benchmark/pca").iterdir())
    assert pictures == ["distill-vitxt-own.png", "pretrain-vitt-own.png"]
    report = json.loads((work / "reports/benchmark.json").read_text())
    assert set(report) == {"untrained vitt", "untrained vitxt", "pretrain vitt", "distill vitxt"}
    for model in report.values():
        assert set(model["own images"]) == {"feature_rank", "feature_std", "mean_cosine", "dimensions"}
    assert "of your own images" in (work / "data/benchmark/table.md").read_text()
