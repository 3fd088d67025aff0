"""The map of images: what it holds, that its server gives it to this machine alone, and that a browser shows it."""

from __future__ import annotations

import http.client
import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patience import PATIENCE
from PIL import Image

from components.errors import VitrailError
from components.release.run import main
from components.release.serve.explore_server import open_server
from components.release.use import explore
from components.release.weights.export import save_model
from components.tables.parts import write_part
from components.tables.schemas import DECISIONS
from tests.components.release.small_models import small_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ODD = "<img src=x onerror=window.odd=1>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of twelve photographs of two classes; the first two are copies, and one file is no image."""
    root = tmp_path_factory.mktemp("map")
    save_model(small_model(registers=2), root / "m")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(12):
        name = ODD if number % 2 else "dark"
        (root / "photos" / name).mkdir(parents=True, exist_ok=True)
        levels = generator.integers(0, 100, (60, 90, 3)) + 150 * (number % 2)
        Image.fromarray(levels.astype(np.uint8)).save(root / f"photos/{name}/{number:02d}.png")
        key = f"{name}/{number:02d}.png"
        status = ("dropped", "self-duplicate") if number == 2 else ("selected", "pool")
        rows.append({"key": key, "status": status[0], "reason": status[1], "component": 0 if number == 2 else number}
                    | {"representative": key, "match": "", "similarity": 0.9, "view": 0, "match_view": 0})  # fmt: skip
    (root / "photos/dark/broken.png").write_bytes(b"no image")
    write_part(root / "decisions.parquet", pa.Table.from_pylist(rows, DECISIONS), DECISIONS)
    command = ["explore", "--model", str(root / "m"), "--images", str(root / "photos"), "--no-serve"]
    assert main([*command, "--decisions", str(root / "decisions.parquet"), "--out", str(root / "map")]) == 0
    return root


def test_each_usable_image_is_a_point_with_what_is_known_of_it(folder: Path) -> None:
    points = {row["key"]: row for row in pq.read_table(folder / "map" / explore.POINTS).to_pylist()}
    assert len(points) == 12
    assert {row["label"] for row in points.values()} == {ODD, "dark"}
    assert {key for key, row in points.items() if row["group"] == 0} == {"dark/00.png", "dark/02.png"}
    assert {row["group"] for row in points.values()} == {0, -1}
    assert (points["dark/02.png"]["status"], points["dark/02.png"]["reason"]) == ("dropped", "self-duplicate")


def test_similar_images_lie_together() -> None:
    generator = np.random.default_rng(0)
    kinds = np.arange(400) % 4
    features = (np.eye(4, 16)[kinds] * 4 + generator.normal(0, 0.3, (400, 16))).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explore, "LANDMARKS", 150)
        places = explore.place(features)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (kinds[apart.argmin(1)] == kinds).mean() > 0.98


def test_a_map_that_is_up_to_date_is_not_made_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "map" / explore.FACTS).stat().st_mtime_ns
    command = ["explore", "--model", str(folder / "m"), "--images", str(folder / "photos"), "--no-serve"]
    assert main([*command, "--decisions", str(folder / "decisions.parquet"), "--out", str(folder / "map")]) == 0
    assert "a map of 12 of 13 images" in capsys.readouterr().out
    assert (folder / "map" / explore.FACTS).stat().st_mtime_ns == before


def test_bad_input_is_one_line(folder: Path, tmp_path: Path) -> None:
    model = ["explore", "--model", str(folder / "m"), "--no-serve", "--out", str(tmp_path / "map")]
    with pytest.raises(VitrailError, match="--images or --benchmark"):
        main(model)
    with pytest.raises(VitrailError, match=r"gone\.parquet: no such table of decisions"):
        main([*model, "--images", str(folder / "photos"), "--decisions", str(tmp_path / "gone.parquet")])
    for more in ([], ["--no-serve"]):
        with pytest.raises(VitrailError, match="no map here"):
            main(["explore", "--out", str(tmp_path / "map"), *more])
    with pytest.raises(VitrailError, match="--images makes a new map, which needs --model"):
        main(["explore", "--images", str(folder / "photos"), "--out", str(folder / "map")])
    (tmp_path / "map.json").write_text("{}")
    with pytest.raises(VitrailError, match="no map here"):
        main(["explore", "--out", str(tmp_path)])


def test_a_map_that_is_there_is_told_without_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--out", str(folder / "map"), "--no-serve"]) == 0
    assert capsys.readouterr().out == f"{folder / 'map'}: a map of 12 of 13 images\n"


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    server = open_server(folder / "map", 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", path, headers={"Host": f"{host}:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_server_gives_the_page_and_thumbnails_alone(port: int) -> None:
    status, page = get(port, "/")
    assert status == 200
    assert ODD.encode() not in page
    status, picture = get(port, "/thumbnail/11.jpg")
    assert (status, Image.open(io.BytesIO(picture)).size) == (200, (96, 64))
    for path in ("/thumbnail/12.jpg", "/thumbnail/-1.jpg", "/thumbnail/x.jpg", "/map.json", "/../m/model.json"):
        assert get(port, path)[0] == 404, path
    assert get(port, "/", host="rebound.example")[0] == 403


@pytest.mark.skipif(CHROMIUM is None, reason="left out: no Chromium")
def test_a_browser_pans_the_map_and_shows_pictures(port: int) -> None:
    from playwright.sync_api import sync_playwright

    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    asked: list[str] = []
    source = "Bokeh.documents[0].get_model_by_name('images').data_source"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            page = browser.new_page(viewport={"width": 1200, "height": 800})
            page.set_default_timeout(60_000)
            page.on("request", lambda request: asked.append(request.url))
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_function("window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
            start = "Bokeh.documents[0].get_model_by_name('map').x_range.start"
            before = page.evaluate(start)
            canvas = page.locator(".bk-Canvas").first.bounding_box()
            assert canvas is not None
            x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(x + 150, y, steps=5)
            page.mouse.up()
            assert page.evaluate(start) < before
            # The point of a copy, selected: its copy is shown with it, each by its picture.
            row = page.evaluate(f"[...{source}.data.group].indexOf(0)")
            page.evaluate(f"{source}.selected.indices = [{row}]")
            page.locator("figure img").first.wait_for()
            shown = page.locator("figure").all_inner_texts()
            assert len(shown) == 2
            assert any("dropped: self-duplicate" in text for text in shown)
            page.locator("select").first.select_option("images with copies")
            view = "Bokeh.documents[0].get_model_by_name('images').view.filter.booleans"
            assert page.evaluate(view).count(True) == 2
            page.locator("select").first.select_option(ODD)
            assert page.evaluate(view).count(True) == 6
            assert page.evaluate("window.odd") is None
        finally:
            browser.close()
    assert any("/thumbnail/" in url for url in asked)
    assert all(url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")) for url in asked)
