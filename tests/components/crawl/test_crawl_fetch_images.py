"""Images that files only name: from WARC, WAT and Parquet to curated shards over loopback; killed and resumed."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components import tracking
from components.context import StageContext
from components.crawl import fetch_images
from components.crawl.demo.server import Resource, serve
from components.crawl.fetch import OUTCOMES, Fetched
from components.crawl.ledger import Ledger
from components.crawl.run import main
from components.crawl.spider import CrawlParams
from components.curate import stage
from components.curate.params import CurateParams
from components.curate.results.reasons import REASONS
from components.errors import VitrailError, run_cli
from components.params import load_params
from components.storage import StorageParams, open_store
from components.tables.parts import read_table
from components.tables.schemas import INDEX
from components.web.formats.warc import Faults, Hop, WarcWriter, read_warc
from components.web.sources.outcomes import OUTCOME_REASONS

ROOT = Path(__file__).resolve().parents[3]
PAGE = """<html><head><link rel="license" href="https://licence.test/by/4.0"></head><body>
<img src="http://img.test/0.png" alt="zero"><img src="//img.test/a/../0.png#again" alt="again">
{many}
<img src="http://img.test/moved.png"><img src="http://img.test/gone.png"><img src="http://img.test/text.png">
<img src="http://img.test/private/x.png"><img src="http://img.test/noai.png"><img src="http://nowhere.invalid/x.png">
<img src="http://10.1.2.3/x.png"><img src="http://ads.restricted.test/x.png"><img src="logo.svg">
<img src="http://img.test/loop.png"><img src="http://img.test/inside.png"></body></html>"""
MANY = 12
EXPECTED = {
    "http://img.test/moved.png": "", "http://img.test/gone.png": "http-error",
    "http://img.test/text.png": "not-an-image",
    "http://img.test/private/x.png": "robots-disallowed", "http://img.test/noai.png": "opt-out",
    "http://nowhere.invalid/x.png": "unreachable", "http://10.1.2.3/x.png": "refused-address",
    "http://ads.restricted.test/x.png": "restricted-domain", "http://pages.test/logo.svg": "vector",
    "http://img.test/loop.png": "too-many-redirects", "http://img.test/inside.png": "refused-address",
    "http://img.test/mine.png": "opt-out", **{f"http://img.test/{i}.png": "" for i in range(MANY)},
}  # fmt: skip


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (80, 90, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Counting(dict[tuple[str, str], Resource]):
    """A site that counts what it was asked for."""

    asked: Counter[str] = Counter()

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked["".join(key)] += 1
        return super().get(key, default)


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[str, Counter[str]]]:
    moved = Resource(b"", "text/plain", 301, (("Location", "/target.png"),))
    loop = Resource(b"", "text/plain", 302, (("Location", "/loop.png"),))
    inside = Resource(b"", "text/plain", 302, (("Location", "http://192.168.0.1/x.png"),))
    pages = Counting({("img.test", f"/{i}.png"): Resource(png(i), "image/png") for i in range(MANY)})
    pages |= {
        ("img.test", "/moved.png"): moved, ("img.test", "/target.png"): Resource(png(100), "application/octet-stream"),
        ("img.test", "/text.png"): Resource(b"<html>not here</html>" * 50, "image/png"),
        ("img.test", "/noai.png"): Resource(png(101), "image/png", headers=(("X-Robots-Tag", "noai"),)),
        ("img.test", "/mine.png"): Resource(png(102), "image/png"),
        ("img.test", "/loop.png"): loop, ("img.test", "/inside.png"): inside,
        ("img.test", "/robots.txt"): Resource(b"User-agent: *\nDisallow: /private/\n", "text/plain"),
        ("pages.test", "/"): Resource(
            b'<a href="two.html">2</a><img src="http://img.test/0.png">', "text/html"),
        ("pages.test", "/two.html"): Resource(b'<img src="http://img.test/1.png" alt="one">', "text/html"),
    }  # fmt: skip
    with serve(pages) as address:
        yield address, pages.asked


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def run(*_: object, **__: object) -> Iterator[tracking.Run]:
        yield tracking.null_run()

    monkeypatch.setattr(tracking, "run", run)


def html() -> str:
    return PAGE.format(many="".join(f'<img src="http://img.test/{i}.png">' for i in range(1, MANY)))


def warc(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        writer = WarcWriter(file)
        for url, text in (("http://pages.test/", html()), ("http://pages.test/again", html())):
            writer.response(url, 200, "OK", [("Content-Type", "text/html")], text.encode())
        opted = '<meta name="robots" content="noai"><img src="http://img.test/mine.png">'
        writer.response("http://pages.test/mine", 200, "OK", [("Content-Type", "text/html")], opted.encode())
    return path


def wat(path: Path) -> Path:
    from warcio.warcwriter import WARCWriter

    urls = [f"http://img.test/{i}.png" for i in range(MANY)]
    links = [{"path": "IMG@/src", "url": url, "alt": "zero"} for url in urls]
    content = {"Envelope": {
        "WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Target-URI": "http://pages.test/"},
        "Payload-Metadata": {"HTTP-Response-Metadata": {
            "Response-Message": {"Status": "200"}, "Headers": {"Content-Type": "text/html"},
            "HTML-Metadata": {"Head": {}, "Links": [{"path": "A@/href", "url": "/x"}, *links]}}}}}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for body in (json.dumps(content).encode(), b"{broken", b"[" * 100_000):
            writer.write_record(
                writer.create_warc_record("http://pages.test/", "metadata", payload=io.BytesIO(body),
                                          warc_content_type="application/json")
            )  # fmt: skip
    return path


def crawl(folder: Path, site_yaml: str, address: str, **changes: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "params/crawl.yaml").read_text().replace("params/policy/", f"{ROOT}/params/policy/")
    hosts = ", ".join(f"{host}: '{address}'" for host in ("img.test", "pages.test"))
    changes = {"delay: 1.0": "delay: 0.0", "resolve: {}": f"resolve: {{{hosts}}}", "workers: 2": "workers: 0",
               "backoff: 0.5": "backoff: 0.0", "per_host: 8": "per_host: 2", **changes}  # fmt: skip
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "crawl.yaml").write_text(text)
    (folder / "site.yaml").write_text(site_yaml)
    return run_cli(main, ["run", "--params", str(folder / "crawl.yaml"), "--source", str(folder / "site.yaml"),
                          "--out", str(folder / "crawl"), "--storage", str(ROOT / "params/storage.yaml")])  # fmt: skip


def curated(folder: Path) -> dict[str, dict[str, Any]]:
    overlays = [f'policy.restricted=["{ROOT}/params/policy/restricted-domains.txt"]', "executor.workers=0",
                "nsfw.enabled=false", "faces.enabled=false"]  # fmt: skip
    params = load_params(ROOT / "params/curate.yaml", CurateParams, overlays)
    context = StageContext(StorageParams(root="data"), None, folder / "curate.json")
    stage.run(params, stage.CurateInputs(folder / "crawl"), folder / "curate", context)
    return {row["url"]: row for row in read_table(folder / "curate/index", INDEX).to_pylist()}


def test_from_pages_in_a_warc_to_shards(site: tuple[str, Counter[str]], tmp_path: Path) -> None:
    warc(tmp_path / "in/a.warc.gz")
    site[1].clear()
    assert crawl(tmp_path, f"kind: fetch\nsource: {tmp_path}/in\n", site[0]) == 0
    assert site[1]["img.test/loop.png"] == 6  # max_redirects and the first
    assert all(count == 1 for asked, count in site[1].items() if "loop" not in asked)
    rows = curated(tmp_path)
    assert {url: row["reason"] for url, row in rows.items()} == EXPECTED
    assert next(iter(rows)) == "http://img.test/0.png"  # in the order in which pages name them, however they arrived
    first = rows["http://img.test/0.png"]
    assert (first["alt"], first["page"], first["licence"]) == (
        "zero", "http://pages.test/", "https://licence.test/by/4.0"
    )  # fmt: skip
    assert first["source"].startswith("images-")
    counts = json.loads((tmp_path / "crawl/crawl.json").read_text())
    assert (counts["links"], counts["image-ok"], counts["link-opt-out"]) == (len(EXPECTED), MANY + 1, 1)
    assert not list(tmp_path.glob(".crawl*"))
    # What is no image, or not to be had, is written nowhere.
    held = b"".join(path.read_bytes() for path in (tmp_path / "crawl").glob("*.warc"))
    assert b"not here" not in held
    assert held.count(b"\x89PNG") == MANY + 1


def test_a_killed_fetch_carries_on_by_image(
    site: tuple[str, Counter[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"kind: fetch\nsource: {warc(tmp_path / 'in/a.warc')}\n"
    write, written = Ledger.write, []

    def dies(self: Ledger, number: int, fetched: Fetched) -> None:
        if len(written) == 6:
            self._file.write(b"WARC/1.1\r\nhalf a record")  # as a kill leaves it
            self._lines.write(b"3 ok 2")
            raise KeyboardInterrupt
        write(self, number, fetched)
        written.append(fetched.url)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "write", dies)
        assert crawl(tmp_path, source, site[0], **{"partitions: 2": "partitions: 1"}) == 130
    assert not (tmp_path / "crawl").exists()
    site[1].clear()
    assert crawl(tmp_path, source, site[0], **{"partitions: 2": "partitions: 1"}) == 0
    again = {f"http://{asked}" for asked in site[1]}
    assert not again & set(written)
    assert {url: row["reason"] for url, row in curated(tmp_path).items()} == EXPECTED
    faults = Faults()
    for path in (tmp_path / "crawl").glob("*.warc"):
        list(read_warc(path, faults, 1 << 20))
    assert not faults.counts


def hop(url: str, body: bytes) -> Hop:
    return Hop(url, 200, "OK", [("Content-Type", "image/png")], body)


@pytest.mark.parametrize("lost", ["nothing", "line", "record", "file"])
def test_a_ledger_is_cut_back_to_what_is_whole(tmp_path: Path, lost: str) -> None:
    def ledger() -> Ledger:
        return Ledger(tmp_path, "p", 10, 4000, {"software": "test"})

    with ledger() as first:
        for i in range(6):
            first.write(i, Fetched(f"http://h.test/{i}", "ok", [hop(f"http://h.test/{i}", bytes([i]) * 1500)]))
        first.write(6, Fetched("http://h.test/6", "dns"))
        parts = first.warcs()
        assert len(parts) == 4  # the last one holds only its head
    if lost == "line":
        os.truncate(tmp_path / "p.ledger", (tmp_path / "p.ledger").stat().st_size - 3)
    elif lost == "record":
        os.truncate(parts[1], parts[1].stat().st_size - 100)
    elif lost == "file":
        parts[1].unlink()
    with ledger() as second:
        done = [i for i in range(10) if second.done(i)]
        assert done == list(range({"nothing": 7, "line": 6, "record": 3, "file": 2}[lost]))
        for i in range(10):
            if i not in done:
                second.write(i, Fetched(f"http://h.test/{i}", "ok", [hop(f"http://h.test/{i}", bytes([i]) * 1500)]))
        assert second.outcome(0) == ("ok", 200)
        assert sum(second.counts().values()) == 10
        faults, urls = Faults(), []
        for path in second.warcs():
            urls += [response.url for response in read_warc(path, faults, 1 << 20)]
        assert not faults.counts
        absent = {"http://h.test/6"} if lost == "nothing" else set()  # it ended as "dns", and so it stays
        assert Counter(urls) == Counter({f"http://h.test/{i}" for i in range(10)} - absent)


def test_wat_parquet_and_lists_of_files(site: tuple[str, Counter[str]], tmp_path: Path, s3_endpoint: str) -> None:
    wat(tmp_path / "in/a.warc.wat.gz")
    table = pa.table({"link": [f"http://img.test/{i}.png" for i in range(4)] + [None, "data:x", "http://img.test/3.png"],
                      "words": [f"number {i}" for i in range(7)], "license": ["by"] * 7})  # fmt: skip
    pq.write_table(table, tmp_path / "in/b.parquet")
    (tmp_path / "in/files.txt").write_text(f"# two\na.warc.wat.gz\n{tmp_path}/in/b.parquet\n")
    source = f"kind: fetch\nsource: {tmp_path}/in/files.txt\ncolumns: {{url: link, alt: words, licence: license}}\n"
    assert crawl(tmp_path, source, site[0]) == 0
    counts = json.loads((tmp_path / "crawl/crawl.json").read_text())
    assert (counts["rows"], counts["links"], counts["pages"], counts["wat-unreadable"]) == (7, MANY, 1, 2)
    assert {row["reason"] for row in curated(tmp_path).values()} == {""}
    # The table alone, from S3, with alternative texts and licences.
    lake = StorageParams(root="s3://vitrail-test/tables", endpoint_url=s3_endpoint)
    open_store(lake).put_file("deep/b.parquet", tmp_path / "in/b.parquet")
    (tmp_path / "s3").mkdir()
    site_yaml = source.replace(f"{tmp_path}/in/files.txt", "s3://vitrail-test/tables/deep/b.parquet") + "limit: 3\n"
    named = load_text(site_yaml, tmp_path / "s3/site.yaml")
    crawl_params = load_params(tmp_path / "crawl.yaml", CrawlParams)
    counts = fetch_images.run(named, crawl_params.fetch, crawl_params.images, tmp_path / "s3/crawl", lake)
    assert (counts["image-ok"], counts["link-limit"]) == (3, 1)
    rows = curated(tmp_path / "s3")
    assert rows["http://img.test/2.png"]["alt"] == "number 2"
    assert rows["http://img.test/2.png"]["licence"] == "by"


def load_text(text: str, path: Path) -> fetch_images.NamedImages:
    path.write_text(text)
    return load_params(path, fetch_images.NamedImages)


def test_a_web_site_is_crawled_and_curated(site: tuple[str, Counter[str]], tmp_path: Path) -> None:
    assert crawl(tmp_path, "kind: web\nseeds: ['http://pages.test/']\n", site[0]) == 0
    assert json.loads((tmp_path / "crawl/crawl.json").read_text()) == {"image-ok": 2, "page-ok": 2}
    rows = curated(tmp_path)
    assert {(url, row["page"], row["status"]) for url, row in rows.items()} == {
        ("http://img.test/0.png", "http://pages.test/", "kept"),
        ("http://img.test/1.png", "http://pages.test/two.html", "kept"),
    }


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("kind: fetch\nsource: nothere\n", "no such file or folder"),
        ("kind: fetch\nsource: IN/b.parquet\n", "no column 'url', there are: link; name it under `columns`"),
        ("kind: fetch\nsource: IN/b.parquet\ncolumns: {url: link}\n", "not one image could be fetched (image-dns 1"),
        ("kind: fetch\nsource: IN/empty.parquet\n", "not one image link in it"),
        ("kind: fetch\nsource: IN/list.txt\n", "which is no file"),
        ("kind: web\nseeds: ['http://nowhere.invalid/']\n", "not one page could be read"),
    ],
)
def test_bad_sources_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, words: str) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"link": ["http://nowhere.invalid/a.png"]}), tmp_path / "in/b.parquet")
    (tmp_path / "in/empty.parquet").write_bytes(b"PAR1 but cut")
    (tmp_path / "in/list.txt").write_text("gone.warc.gz\n")
    assert crawl(tmp_path, source.replace("IN", f"{tmp_path}/in"), "127.0.0.1:1") == 1
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(shown) == 1
    assert words in shown[0]
    assert not (tmp_path / "crawl").exists()


def test_links_without_images_are_not_curated_as_they_are(tmp_path: Path) -> None:
    from components.web.sources.sources_json import register

    wat(tmp_path / "a.wat.gz")
    with pytest.raises(VitrailError, match="kind: fetch"):
        register(str(tmp_path), StorageParams(root="data"))


def test_every_outcome_has_its_reason() -> None:
    assert set(OUTCOME_REASONS) == set(OUTCOMES) - {"ok"}
    assert set(OUTCOME_REASONS.values()) <= set(REASONS)
