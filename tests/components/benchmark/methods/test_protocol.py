"""A protocol's digest follows what changes results, and nothing else; the shipped ones hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from components.benchmark.methods.protocol import FOLDER, Protocol, load_protocol, refuse_changed, split_overrides
from components.benchmark.pages.published import load_published, published_table
from components.errors import VitrailError

ROOT = Path(__file__).resolve().parents[4]
NAMES = sorted(path.stem for path in (ROOT / "params" / FOLDER).glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_shipped_protocols_hold(name: str) -> None:
    found = load_protocol(ROOT / "params", name)
    assert found.label.startswith(f"{name} v{found.params.version} (")
    assert found.params.about


def test_the_papers_protocol_is_the_papers() -> None:
    paper = load_protocol(ROOT / "params", "dinov2").params
    assert paper.linear_grid is not None
    assert paper.logistic is not None
    grid = paper.linear_grid
    assert len(grid.rates) * len(grid.blocks) * len(grid.pooling) == 52
    np.testing.assert_allclose(paper.logistic.costs, 10 ** np.linspace(-6, 5, 45), rtol=1e-6)
    assert (paper.knn.k, paper.knn.temperature) == ([10, 20, 100, 200], 0.07)


def test_a_setting_that_came_later_changes_no_older_protocols_digest() -> None:
    digests = {"dense512": "dfd660bd", "dense512pixels": "6ffb65ed"}
    assert {name: load_protocol(ROOT / "params", name).digest[:8] for name in digests} == digests


def test_the_digest_covers_values_that_change_results() -> None:
    first = load_protocol(ROOT / "params", "quick")
    for same in (["features.batch_size=3"], ["about=else"]):
        assert load_protocol(ROOT / "params", "quick", same).digest == first.digest
    others = ["knn.temperature=0.1", "features.crop=0.875", "version=2", "few_shot={per_class: [5]}"]
    digests = {load_protocol(ROOT / "params", "quick", [one]).digest for one in others}
    assert len(digests | {first.digest}) == 5


def test_comments_are_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    source = ROOT / "params" / FOLDER / "quick.yaml"
    shutil.copy(source, tmp_path / FOLDER / "quick.yaml")
    with (tmp_path / FOLDER / "quick.yaml").open("a") as file:
        file.write("# a remark\n")
    assert load_protocol(tmp_path, "quick").digest == load_protocol(ROOT / "params", "quick").digest
    with pytest.raises(VitrailError, match=r"no such parameter file.*quick"):
        load_protocol(tmp_path, "quik")


def test_a_changed_file_needs_a_new_version() -> None:
    first = load_protocol(ROOT / "params", "quick")
    changed = load_protocol(ROOT / "params", "quick", ["knn.temperature=0.1"])
    raised = load_protocol(ROOT / "params", "quick", ["knn.temperature=0.1", "version=2"])
    with pytest.raises(VitrailError, match=r"quick v1 has changed.*raise `version`"):
        refuse_changed(first.plain(), changed, Path("out"))
    for other in (first, raised, Protocol("else", changed.params)):
        refuse_changed(first.plain(), other, Path("out"))
    refuse_changed(None, changed, Path("out"))  # scores from before there were protocols


def test_overrides_go_to_the_file_they_are_of() -> None:
    assert split_overrides(["knn.k=[1]", "pca.own=2", "linear.folds=2"]) == (
        ["knn.k=[1]", "linear.folds=2"],
        ["pca.own=2"],
    )


def test_published_scores_name_source_and_protocol() -> None:
    rows = load_published(ROOT / "params")
    table = published_table(rows, "ade20k")
    assert "| ade20k | mIoU % | linear, single scale, 512 px | DINOv2 S/14 44.3" in table
    assert "imagenet" not in table
    assert len(published_table(rows).splitlines()) == len(rows) + 4
    assert published_table(rows, "elpv") == ""
    assert load_published(Path("nowhere")) == []
