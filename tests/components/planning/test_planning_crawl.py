"""The plan's figures are products that can be checked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.crawl.spider import CrawlParams
from components.errors import VitrailError
from components.params import load_params
from components.planning.crawl import CrawlRates, load_rates, plan
from components.planning.run import main

ROOT = Path(__file__).resolve().parents[3]
CRAWL = load_params(ROOT / "params/crawl.yaml", CrawlParams)
RATES = CrawlRates.model_validate(
    {
        "warc": {"pages": 1000, "megabytes": 100, "links": 10, "unique": 0.5, "wanted": 0.5, "answered": 0.8,
                 "kept": 0.5, "image_bytes": 50_000, "images_per_host": 20},
        "core": {"scan": 100, "unique": 1000, "fetch": 25, "decode": 20, "nsfw": 10, "faces": 10, "store": 100},
    }
)  # fmt: skip


def test_figures() -> None:
    told = plan(10, CRAWL, RATES, cores=2).splitlines()
    assert told[0].endswith(
        "10,000 pages, 100,000 image links, 50,000 unique, 25,000 asked for, 20,000 images, 10,000 kept"
    )
    assert told[1].startswith("hosts: 1,250, 20 images each; at 1 s between requests")
    rows = [line.split() for line in told if line.startswith("  ")]
    assert ["images", "fetched", "1", "GB"] in rows
    assert ["shards", "500", "MB"] in rows
    assert ["shards", "50", "s"] in rows  # 10,000 images at 100 a second on two cores
    assert ["decode,", "hash", "8", "min", "20", "s"] in rows
    # 100 + 100 + 1000 + 1000 + 2000 + 1000 + 100 core-seconds
    assert told[-1] == f"core-hours: {5300 / 3600:,.1f}"


def test_what_the_cores_wait_for_is_said() -> None:
    assert "the line alone" in plan(10, CRAWL, RATES, 64, megabits=1.0).splitlines()[-1]
    slow = CRAWL.model_copy(update={"fetch": CRAWL.fetch.model_copy(update={"delay": 1000.0})})
    assert "the hosts alone" in plan(10, slow, RATES, 64).splitlines()[-1]


def test_the_command_and_numbers_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--params", str(ROOT / "params/crawl.yaml"), "--rates", str(ROOT / "params/rates/curate.yaml")]
    assert main(["crawl", "--warcs", "9e4", "--cores", "640", *files]) == 0
    assert capsys.readouterr().out.startswith("90,000 WARC files on 640 cores: ")
    assert load_rates(ROOT / "params/rates/curate.yaml").core.scan > 0
    for warcs, cores, megabits in ((0, 1, 1.0), (1e9, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0)):
        with pytest.raises(VitrailError, match=r"^--"):
            plan(warcs, CRAWL, RATES, cores, megabits)
