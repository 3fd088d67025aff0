"""After a finished crawl, only what timed out or was unreachable is asked for again, and curation takes the answers."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from raw_server import Raw, answer, drip, raw_server

from components import tracking
from components.context import StageContext
from components.crawl.run import main
from components.curate import stage
from components.curate.params import CurateParams
from components.errors import VitrailError, run_cli
from components.params import load_params
from components.storage import StorageParams
from components.tables.parts import PartWriter, part_name, parts, read_table
from components.tables.schemas import INDEX, NAMED_LINKS, OUTCOMES
from components.web.formats.warc import WarcWriter

ROOT = Path(__file__).resolve().parents[3]
HTML = "Content-Type: text/html"
TABLES = {"links": NAMED_LINKS, "outcomes": OUTCOMES}
IMAGES = ["0.png", "late.png", "gone.png", "down.png"]
PAGE = "".join(f"<img src=http://img.test/{name}>" for name in IMAGES).encode()


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (80, 90, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def run(*_: object, **__: object) -> Iterator[tracking.Run]:
        yield tracking.null_run()

    monkeypatch.setattr(tracking, "run", run)


def crawl(folder: Path, address: str, command: str, *more: str) -> int:
    text = (ROOT / "params/crawl.yaml").read_text().replace("params/policy/", f"{ROOT}/params/policy/")
    (folder / "crawl.yaml").write_text(text)
    hosts = json.dumps(dict.fromkeys(("img.test", "pages.test"), address))
    manners = [f"fetch.resolve={hosts}", "fetch.delay=0", "fetch.backoff=0", "fetch.retries=0", "fetch.deadline=0.7",
               "images.executor.workers=0", "sandbox.enabled=false"]  # fmt: skip
    given = ["--params", str(folder / "crawl.yaml"), "--source", str(folder / "site.yaml"), "--out",
             str(folder / "crawl"), "--storage", str(ROOT / "params/storage.yaml")]  # fmt: skip
    return run_cli(main, [command, *given, *(word for one in manners for word in ("--set", one)), *more])


def reasons(folder: Path) -> dict[str, str]:
    overlays = [f'policy.restricted=["{ROOT}/params/policy/restricted-domains.txt"]', "executor.workers=0",
                "nsfw.enabled=false", "faces.enabled=false"]  # fmt: skip
    params = load_params(ROOT / "params/curate.yaml", CurateParams, overlays)
    context = StageContext(StorageParams(root="data"), None, folder / "curate.json")
    stage.run(params, stage.CurateInputs(folder / "crawl"), folder / "curate", context)
    rows: list[dict[str, Any]] = read_table(folder / "curate/index", INDEX).to_pylist()
    return {row["url"].rpartition("/")[2]: row["reason"] for row in rows}


@contextlib.contextmanager
def stumbling() -> Iterator[tuple[Raw, str]]:
    """A server where one image comes too slowly, one connection ends without an answer, and one image is not there."""
    answers: dict[str, Any] = {"/0.png": answer(png(0)), "/late.png": drip(png(1)[:300], 1.0), "/down.png": b""}
    with raw_server(answers) as (raw, address):
        yield raw, address


def mend(raw: Raw) -> None:
    raw.answers |= {"/late.png": answer(png(1)), "/down.png": answer(png(3))}
    raw.targets.clear()


def named(folder: Path) -> None:
    """A source whose page names the images."""
    with open(folder / "in.warc", "wb") as file:
        WarcWriter(file).response("http://pages.test/", 200, "OK", [("Content-Type", "text/html")], PAGE)
    (folder / "site.yaml").write_text(f"kind: fetch\nsource: {folder}/in.warc\n")


def rows(table: Path) -> list[dict[str, Any]]:
    """As any reader of Parquet has them."""
    found: list[dict[str, Any]] = pq.read_table(table).to_pylist()
    return found


def as_older(crawled: Path) -> None:
    """Write the tables as one file each, the outcomes without the name of a table."""
    content = json.loads((crawled / "sources.json").read_text())
    for name in TABLES:
        table = pq.read_table(crawled / name)
        pq.write_table(table.replace_schema_metadata() if name == "outcomes" else table, crawled / f"{name}.parquet")
        shutil.rmtree(crawled / name)
        content[name] = f"{name}.parquet"
    (crawled / "sources.json").write_text(json.dumps(content))


def counts(folder: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((folder / "crawl/crawl.json").read_text())
    return found


def test_named_images_that_could_not_be_got_are_asked_for_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named(tmp_path)
    with stumbling() as (raw, address):
        assert crawl(tmp_path, address, "run") == 0
        before = {"0.png": "", "late.png": "timed-out", "gone.png": "http-error", "down.png": "unreachable"}
        assert reasons(tmp_path) == before
        assert crawl(tmp_path, address, "retry") == 0  # nothing has changed there: again the same end
        assert "asked 2, image-connection 1, image-timeout 1" in capsys.readouterr().out
        assert reasons(tmp_path) == before
        mend(raw)
        assert crawl(tmp_path, address, "retry", "--reasons", "timed-out,unreachable", "--set", "fetch.deadline=5") == 0
        assert sorted(raw.targets) == ["/down.png", "/late.png", "/robots.txt"]
        assert reasons(tmp_path) == before | {"late.png": "", "down.png": ""}
        assert counts(tmp_path)["image-ok"] == 3
        assert "image-timeout" not in counts(tmp_path)
        raw.targets.clear()
        assert crawl(tmp_path, address, "retry") == 0
        assert raw.targets == []
        assert "asked 0" in capsys.readouterr().out
    assert not list(tmp_path.glob(".crawl*"))


def test_links_and_outcomes_are_tables_in_parts_and_one_that_is_missing_names_the_crawl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = functools.partial(PartWriter, rows=2)
    monkeypatch.setattr("components.crawl.fetch_images.PartWriter", small)
    monkeypatch.setattr("components.web.sources.link_table.PartWriter", small)
    named(tmp_path)
    with stumbling() as (_, address):
        assert crawl(tmp_path, address, "run") == 0
    made = {name: [path.name for path in parts(tmp_path / "crawl" / name, schema)] for name, schema in TABLES.items()}
    assert made == {name: [part_name(0, 2), part_name(1, 2)] for name in TABLES}
    assert sorted(row["url"].rpartition("/")[2] for row in rows(tmp_path / "crawl/links")) == sorted(IMAGES)
    before = reasons(tmp_path)
    for name in TABLES:
        part = tmp_path / "crawl" / name / part_name(1, 2)
        content = part.read_bytes()
        for gone in (True, False):
            shutil.rmtree(tmp_path / "curate", ignore_errors=True)
            part.unlink()
            if not gone:
                part.write_bytes(content[:-9])  # cut short
            with pytest.raises(VitrailError, match=rf"{name}/{part.name}.*run the crawl stage again"):
                reasons(tmp_path)
            part.write_bytes(content)
    assert reasons(tmp_path) == before
    (tmp_path / "crawl/outcomes" / part_name(0, 2)).unlink()
    assert crawl(tmp_path, address, "retry") == 1
    assert "run the crawl stage again" in capsys.readouterr().err


def test_a_crawl_of_an_older_version_with_one_file_a_table_is_curated_and_asked_again(tmp_path: Path) -> None:
    named(tmp_path)
    with stumbling() as (raw, address):
        assert crawl(tmp_path, address, "run") == 0
        before = reasons(tmp_path)
        as_older(tmp_path / "crawl")
        assert reasons(tmp_path) == before
        mend(raw)
        assert crawl(tmp_path, address, "retry") == 0
        assert reasons(tmp_path) == before | {"late.png": "", "down.png": ""}
    assert (tmp_path / "crawl/links.parquet").is_file()
    assert sorted(row["outcome"] for row in rows(tmp_path / "crawl/outcomes")) == ["http-error", "ok", "ok", "ok"]


def test_a_site_that_was_crawled_gives_what_a_page_names_that_came_later(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("kind: web\nseeds: ['http://pages.test/']\n")
    with stumbling() as (raw, address):
        raw.answers |= {"/": answer(PAGE + b"<a href=/slow>", HTML), "/slow": drip(b"<p>", 1.0)}
        assert crawl(tmp_path, address, "run") == 0
        assert counts(tmp_path)["page-timeout"] == 1
        assert reasons(tmp_path)["late.png"] == "timed-out"
        mend(raw)
        raw.answers |= {"/slow": answer(b"<img src=http://img.test/new.png><a href=/>", HTML)}
        raw.answers |= {"/new.png": answer(png(4))}
        assert crawl(tmp_path, address, "retry") == 0
        asked = [target for target in raw.targets if target != "/robots.txt"]
        assert sorted(asked) == ["/down.png", "/late.png", "/new.png", "/slow"]
        expected = {"0.png": "", "late.png": "", "gone.png": "http-error", "down.png": "", "new.png": ""}
        assert reasons(tmp_path) == expected
        assert counts(tmp_path) == {"image-http-error": 1, "image-ok": 4, "page-ok": 2}


@pytest.mark.parametrize(
    ("given", "words"),
    [("timed_out", "did you mean 'timed-out'"), ("exact-duplicate", "no fetch ends as"), ("timed-out", "sources.json")],
)
def test_what_cannot_be_asked_again_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, words: str
) -> None:
    assert crawl(tmp_path, "127.0.0.1:1", "retry", "--reasons", given) == 1
    assert words in capsys.readouterr().err
