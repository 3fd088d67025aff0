"""Headless Chromium on the MLflow UI: the experiment's models, two checkpoints selected, both scores compared."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chain_helpers import Chain, stage_env
from patience import PATIENCE

from infra.local.servers import Service, responds

pytestmark = pytest.mark.e2e

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update"]
SCREENSHOT = "VITRAIL_SCREENSHOT"  # a path: the comparison is kept there, for docs/


@pytest.fixture
def mlflow_url(chain: Chain, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[str]:
    """An MLflow server on the chain's own store, as ``make platform`` starts it."""
    port = free_port()
    service = Service("mlflow", tmp_path)
    env = stage_env(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    store = ["--backend-store-uri", f"sqlite:///{chain.root}/mlflow.db", "--workers", "1"]
    address = ["--artifacts-destination", str(chain.root / "mlartifacts"), "--host", "127.0.0.1", "--port", str(port)]
    service.start([sys.executable, "-m", "mlflow", "server", *store, *address], cwd=chain.root, env=env)
    url = f"http://127.0.0.1:{port}"
    try:
        service.wait(lambda: responds(f"{url}/health"), 120)
        yield url
    finally:
        service.stop(grace=10)


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


@pytest.mark.skipif(CHROMIUM is None, reason="left out: no Chromium")
def test_two_checkpoints_are_compared_in_the_browser(mlflow_url: str) -> None:
    from playwright.sync_api import sync_playwright

    api = f"{mlflow_url}/api/2.0/mlflow"
    with urllib.request.urlopen(f"{api}/experiments/get-by-name?experiment_name=vitrail", timeout=PATIENCE) as answer:
        experiment = json.loads(answer.read())["experiment"]["experiment_id"]
    models = post(f"{api}/logged-models/search", {"experiment_ids": [experiment]})["models"]
    scores = {}
    for model in models:
        for metric in model["data"].get("metrics", []):
            scores.setdefault(metric["key"], {})[model["info"]["name"]] = metric["value"]
    shared = {key: by_model for key, by_model in scores.items() if len(by_model) >= 2}
    assert shared, f"no metric that two checkpoints share; there are {scores}"
    key = sorted(shared, key=lambda name: ("knn" not in name, name))[0]
    # Trained checkpoints are called preset-step; the benchmark's baselines are not what is compared here.
    first, second = [name for name in sorted(shared[key]) if re.fullmatch(r"[\w-]+-step\d+", name)][:2]

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": 1700, "height": 950})
            page.set_default_timeout(60_000)
            page.goto(f"{mlflow_url}/#/experiments/{experiment}/models?workflowType=machine_learning")
            page.get_by_role("link", name=first, exact=True).first.wait_for()
            if (assistant := page.get_by_role("button", name="Close")).count():
                assistant.last.click()
            page.locator("input[value=CHART]").evaluate("radio => radio.click()")
            select_only(page, {first, second})
            page.mouse.move(0, 0)
            page.wait_for_timeout(1500)  # the bars grow
            if where := os.environ.get(SCREENSHOT):
                page.screenshot(path=where)
            search = page.get_by_placeholder("Search metric charts")
            search.fill(f"^{re.escape(key)}$")
            page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length == 1")
            page.wait_for_timeout(1500)
            card = page.locator("xpath=//*[@data-component-id='fullscreen_button_chartcard']/../../..").filter(
                has=page.locator(".js-plotly-plot")
            )
            shown = card.text_content() or ""
            assert key in shown
            for name in (first, second):
                assert name in shown
                assert f"{shared[key][name]:.2f}" in shown
            for other in set(shared[key]) - {first, second}:
                assert other not in shown
        finally:
            browser.close()


def select_only(page: Any, names: set[str]) -> None:
    """Leave visible only the models ``names``: the eye before each other row is clicked shut."""
    eyes = page.locator("[data-component-id='mlflow.logged_model.list_page.row_visibility_toggle']")
    eyes.first.wait_for()
    rows = page.get_by_role("row").filter(has=eyes)
    for index in range(rows.count()):
        row = rows.nth(index)
        if row.get_by_role("link").first.inner_text() not in names:
            row.locator("[data-component-id='mlflow.logged_model.list_page.row_visibility_toggle']").click()
