"""The report: one file, whatever the stages have left, with nothing that an attacker's names could inject."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.curate.results.reasons import REASONS
from components.dedup.decisions import decide
from components.report import reasons
from components.report.build import render, write
from components.report.plot import _ticks, plot

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = '<script>document.title="taken"</script>'


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def picture(path: Path, width: int = 60) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, width, 3), 90, np.uint8)).save(path)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The parameters of a checkout in which no stage has run."""
    put(tmp_path / "params/pipeline.yaml", "source: /my/photos\npretrain: [vitt]\ndistill: {vitxt: {teacher: vitt}}\n")
    return tmp_path


@pytest.fixture
def finished(checkout: Path) -> Path:
    """Small outputs of every stage."""
    put(checkout / "data/crawl/sources.json", {"files": [{"kind": "images", "bytes": 2_000_000}], "left": {"video": 3}})
    put(checkout / "data/crawl/crawl.json", {"image-ok": 213})
    counts = {"near-duplicate": 11, "opt-out": 2}
    put(checkout / "reports/curate.json", {"links": 1220, "kept": 1207, "dropped": 13, "reasons": counts, "faces": 2})
    picture(checkout / "data/curate/contact-sheet.png", 2000)
    outcome = {"pool": 1100, "self-duplicate": 107}
    put(checkout / "reports/dedup.json", {"images": 1207, "selected": 1100, "reasons": outcome, "threshold_self": 0.65})
    picture(checkout / "data/dedup/duplicates.jpg")
    put(checkout / "data/dedup/review.html", "review")
    points = [{"step": step, "loss": 9 - step / 100, "feature_std": 0.9, "ibot": None} for step in range(1, 500)]
    probes = [{"step": 0, "probe/a/knn20": 0.5, "probe/a/knn20_raw_pixels": 0.6}]
    for stage in ("pretrain/vitt", "distill/vitxt"):
        put(checkout / f"data/{stage}/curve.json", {"points": points, "probes": probes})
        put(checkout / f"data/{stage}/model.json", {})
        put(
            checkout / f"reports/{stage.replace('/', '-')}.json", {"iterations": 499, "images_seen": 4990, "minutes": 2}
        )
    put(checkout / "data/benchmark/table.md", f"### cells {EVIL}\n\n| model | knn |\n|---|---|\n| vitt | 95.2 |\n")
    scores = {"raw pixels": {"cells": {"type": {"knn20": 94.1}}}, "pretrain vitt": {"cells": {"type": {"knn20": 95.2}}}}
    put(checkout / "reports/benchmark.json", scores)
    picture(checkout / "data/benchmark/pca/pretrain-vitt-own.png")
    rules = [{"success": True}, {"success": False}]
    put(checkout / "reports/gx/curate/index/result.json", {"table": "index", "rows": 9, "rules": rules})
    return checkout


def test_before_any_stage_every_section_says_what_to_run(checkout: Path) -> None:
    shown = render(checkout, {})
    for stage in ("crawl", "curate", "dedup", "pretrain@vitt", "distill@vitxt", "benchmark"):
        assert f"<code>vitrail run {stage}</code>" in shown
    assert "/my/photos" in shown


def test_the_page_shows_what_the_stages_found(finished: Path) -> None:
    shown = render(finished, {"MLflow: curves": "http://127.0.0.1:5000/#/x?a=1&b=2"})
    for words in (
        "1,220 image links were found. 1,207 images were kept, and 13 links were dropped.",
        "it is a kept image, saved again or resized",
        "1,100 of 1,207 images are selected for training",
        "../data/dedup/review.html",
        "499 steps, 4,990 images seen, 2 min 00 s",
        "raw pixels 0.6",
        "<td>95.2</td>",
        "gx/curate/index/index.html",
        "1 broken",
        'href="http://127.0.0.1:5000/#/x?a=1&amp;b=2"',
    ):
        assert words in shown
    assert "has not finished" not in shown


def test_names_from_the_data_cannot_add_markup(finished: Path) -> None:
    put(finished / "params/pipeline.yaml", f"source: '/photos/{EVIL}'\npretrain: [vitt]\ndistill: {{}}\n")
    put(finished / "data/crawl/crawl.json", {EVIL: 1})
    assert "<script" not in render(finished, {EVIL: EVIL})


def test_the_page_is_one_file_and_loads_nothing(finished: Path) -> None:
    shown = write(finished, {}).read_text()
    assert re.findall(r"(?:src|srcset)=\"(?!data:)", shown) == []
    assert "<script" not in shown
    assert "@import" not in shown


def test_a_damaged_output_is_a_stage_that_has_not_finished(finished: Path) -> None:
    put(finished / "reports/curate.json", '{"links": 1')
    assert "<code>vitrail run curate</code>" in render(finished, {})


def test_outputs_of_another_version_do_not_hide_the_other_sections(finished: Path) -> None:
    put(finished / "data/crawl/sources.json", {"files": [{"path": "x"}]})
    put(finished / "reports/dedup.json", {"images": "many", "selected": 3})
    put(finished / "reports/curate.json", {"images": 1})
    shown = render(finished, {})
    assert shown.count("another form than this version writes") == 3
    assert "<td>95.2</td>" in shown


def test_every_reason_of_the_stages_has_its_meaning() -> None:
    assert set(reasons.CURATE) == set(REASONS)
    assert set(reasons.DEDUP) == set(decide.REASONS)


def test_a_curve_without_a_finite_point_is_left_out() -> None:
    assert plot("loss", {"loss": [(1, float("nan"))]}) == ""
    assert plot("loss", {"loss": [(1, 2.0)], "bad": [(1, float("inf"))]}).count("<circle") == 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.5333, 0.5385), (-3.0, 2e6), (4.75, 5.25)])
def test_ticks_lie_inside_and_are_few(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert 1 <= len(ticks) <= 6
    assert all(low <= value <= high for value in ticks)


@pytest.fixture
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="left out: no Chromium")
def test_a_browser_shows_it_in_light_and_dark_and_on_a_phone(finished: Path, chromium: Any) -> None:
    address = write(finished, {}).as_uri()
    papers = set()
    for width, scheme in ((1200, "light"), (390, "dark")):
        page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked = list[str]()
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(address)
        assert page.title() == "Vitrail: report of this run"
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out sideways
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.locator("svg polyline").count() >= 4
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        page.get_by_role("link", name="Scores").click()
        assert page.get_by_role("heading", name="Scores").is_visible()
    assert len(papers) == 2
