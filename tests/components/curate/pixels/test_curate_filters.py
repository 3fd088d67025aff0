"""A filter of the user's own: one function and one line of params; its reason is known wherever reasons are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.context import StageContext
from components.crawl.run import main as crawl
from components.curate import stage
from components.curate.params import CurateParams
from components.curate.pixels.filters import FilterParams, filter_scores
from components.errors import VitrailError
from components.inputs.named import named_inputs
from components.params import load_params
from components.pipeline import load_pipeline
from components.plugins import code_digests
from components.report.reasons import meaning
from components.storage import StorageParams
from components.tables.parts import read_table
from components.tables.schemas import AUDIT, INDEX

ROOT = Path(__file__).resolve().parents[4]
CODE = """
def make(params):
    def score(images):
        return [1 - float(image.mean()) / 255 for image in images]  # 1 is black
    return score
"""
LINE = "filters=[{name: dark, call: own_filters_of_this_test:make, threshold: 0.9}]"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "params").symlink_to(ROOT / "params")
    (tmp_path / "own_filters_of_this_test.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_filters_of_this_test", None)


def test_one_line_of_params_drops_images_with_a_reason_of_its_own(checkout: Path) -> None:
    generator = np.random.default_rng(0)
    for name, top in (("dark", 20), ("bright", 255), ("gray", 120)):
        pixels = generator.integers(0, top, (80, 80, 3), np.uint8)
        (checkout / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(checkout / f"images/{name}.png")
    (checkout / "images/again.png").write_bytes((checkout / "images/dark.png").read_bytes())
    assert crawl(["run", "--params", "params/crawl.yaml", "--source", "images", "--out", "crawl"]) == 0
    off = [f"{name}.enabled=false" for name in ("nsfw", "faces", "sandbox")]
    params = load_params("params/curate.yaml", CurateParams, [LINE, "executor.workers=0", *off])
    context = StageContext(StorageParams(root="data"), None, checkout / "report.json")
    report = stage.run(params, stage.CurateInputs(checkout / "crawl"), checkout / "curate", context)

    assert report["reasons"] == {"filter:dark": 2}  # the copy of a dropped image shares its fate
    rows = {row["url"].removeprefix("file:"): row for row in read_table(checkout / "curate/index", INDEX).to_pylist()}
    assert {name: row["reason"] for name, row in rows.items()} == {
        "dark.png": "filter:dark", "again.png": "filter:dark", "bright.png": "", "gray.png": "",
    }  # fmt: skip
    audit = read_table(checkout / "curate/audit", AUDIT).to_pylist()
    assert {row["check"] for row in audit} == {"filter:dark"}
    assert sorted((row["action"], row["score"] > 0.9) for row in audit) == [
        ("dropped", True), ("kept", False), ("kept", False),
    ]  # fmt: skip
    assert "your filter dark" in meaning("filter:dark")
    assert params.blamed()["filter:dark"] == "filters, dark.threshold 0.9"


def test_dvc_watches_the_file_of_a_filter_and_a_run_that_was_stopped_begins_anew_when_it_changes(
    checkout: Path,
) -> None:
    (checkout / "params").unlink()
    (checkout / "params").mkdir()
    (checkout / "params/pipeline.yaml").write_text((ROOT / "params/pipeline.yaml").read_text())
    name, _, value = LINE.partition("=")
    text = (ROOT / "params/curate.yaml").read_text().replace("filters: []", f"{name}: {value}")
    (checkout / "params/curate.yaml").write_text(text)
    watched = named_inputs(Path("params"), load_pipeline())["curate"]
    assert watched["params/curate.yaml: filters.0.call"] == "own_filters_of_this_test.py"
    assert "params/curate.yaml: nsfw.model" not in watched
    before = code_digests(["own_filters_of_this_test:make", "open_nsfw"])
    (checkout / "own_filters_of_this_test.py").write_text(CODE + "# changed\n")
    after = code_digests(["own_filters_of_this_test:make", "open_nsfw"])
    assert before[0] != after[0]
    assert before[1] == after[1] == ""


class Broken:
    """A filter whose scores are those that ``settings`` give."""

    def __init__(self, params: FilterParams) -> None:
        self.scores = params.settings["scores"]

    def __call__(self, images: Sequence[np.ndarray]) -> list[float]:
        return [float(score) for score in self.scores]


@pytest.mark.parametrize(
    ("call", "scores", "said"),
    [
        (f"{__name__}:Broken", [1], "1 scores for 2 images"),
        (f"{__name__}:Broken", [1, "nan"], "finite number for each"),
        ("no_such_package:make", [], "install it, or put no_such_package into this folder"),
        ("numpy:no_such", [], "has no 'no_such'"),
        ("dark", [], "name a plug-in as package.module:function"),
    ],
    ids=["too-few", "nan", "no-module", "no-function", "no-colon"],
)
def test_a_filter_that_does_not_work_is_one_line(call: str, scores: list[object], said: str) -> None:
    params = FilterParams(name="odd", call=call, settings={"scores": scores})
    with pytest.raises(VitrailError, match=said):
        filter_scores([np.zeros((8, 8, 3), np.uint8)] * 2, params)


def test_two_filters_of_one_name_are_refused() -> None:
    twice = "filters=[{name: a, call: 'x:y'}, {name: a, call: 'x:z'}]"
    with pytest.raises(VitrailError, match="two filters have the name 'a'"):
        load_params(ROOT / "params/curate.yaml", CurateParams, [twice])
