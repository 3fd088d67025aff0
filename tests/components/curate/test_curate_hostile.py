"""Fuzzing of every parser of the crawl: they end, with a result or their declared error. Pages that are too much."""

from __future__ import annotations

import contextlib
import encodings.aliases
import gzip
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_images import KINDS, bomb, noise, saved, unpacking
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warcio.warcwriter import WARCWriter

from components import tracking
from components.context import StageContext
from components.curate import stage
from components.curate.params import CurateParams
from components.errors import VitrailError
from components.images.sandbox import SandboxParams
from components.params import load_params
from components.storage import StorageParams, open_store
from components.tables.parts import read_table, write_part
from components.tables.schemas import INDEX
from components.web.formats import links, pages
from components.web.formats.charset import decode_text
from components.web.formats.links import parse_page, parse_srcset, resolve
from components.web.formats.opt_out import header_opts_out
from components.web.formats.pages import read_page
from components.web.formats.warc import Response, WarcWriter
from components.web.formats.wat import parse_wat
from components.web.rules.keys import key_of
from components.web.rules.policy import PolicyParams, origin, registrable_domain
from components.web.rules.robots import MAX_BYTES, parse, rules_for
from components.web.sources.scan import ScanItem, TableColumns, scan_file
from components.web.sources.sources_json import SourceFile, Sources

ROOT = Path(__file__).resolve().parents[3]

PAGE = "http://site.test/a/b.html"
FRAGMENTS = st.sampled_from([
    "<img", " src=", " srcset=", "'", '"', ">", "<picture>", "</picture>", "<source", "<base href=", "//", "http:",
    "[::1", "%zz", "\0", "\ud800", "&#xD800;", "&#0;", "<!--", "-->", "<script>", "<noscript>", "<template>", "<svg>",
    "<math>", "<![CDATA[", "<meta name=robots content=", "noai", "data:", ",", " 1e999x", " 99999999999999999999w",
    "(", ")", "é", "\U0001f600", "<frameset>", "<plaintext>", "<table>", "</p>", "@", ":99999", "\r", "\t", "..",
    "/./", "İ", "ß.test", "´", "ﬀ.test", "．", ":", "#", "?", "\\",
])  # fmt: skip
MARKUP = st.lists(st.one_of(FRAGMENTS, st.text(max_size=10)), max_size=40).map("".join)


@settings(max_examples=400, deadline=None)
@given(MARKUP)
def test_pages_of_any_markup(html: str) -> None:
    page = parse_page(html.encode("utf-8", "replace").decode(), PAGE)
    for link in page.images:
        assert link.url.startswith(("http://", "https://"))
        assert link.url.isascii()
        assert resolve(PAGE, link.url) == link.url  # normal already
        assert registrable_domain(origin(link.url).partition("//")[2]) is not None
        assert len(key_of(link.url)) == 20
        (link.alt + page.licence).encode()


@settings(max_examples=300, deadline=None)
@given(MARKUP, MARKUP)
def test_addresses_of_any_text(base: str, address: str) -> None:
    for found in (resolve(base, address), resolve(PAGE, address), resolve("", f"http://{address}")):
        assert found == "" or (found.startswith(("http://", "https://")) and resolve("", found) == found)
    parse_srcset(address)
    header_opts_out(address, base)


CODECS = sorted({*encodings.aliases.aliases, *encodings.aliases.aliases.values(), "idna", "punycode", "undefined"})


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300), st.one_of(st.text(max_size=60), st.sampled_from(CODECS)))
def test_pages_of_any_bytes_and_labels(body: bytes, label: str) -> None:
    for kind in (label, f"text/html; charset={label}", "text/html"):
        decode_text(Response("u", 200, {"content-type": kind}, body, False, 0)).encode()


ROBOTS = st.lists(
    st.one_of(st.sampled_from([b"User-agent: *", b"User-agent: vitrail", b"Disallow: /", b"Allow: /*$",
                               b"Crawl-delay: 1e9", b"Crawl-delay: " + b"9" * 400, b"Disallow: /**********a",
                               b"\xff\xfe", b"Sitemap: x", b"#", b"\r", b"\n", b"%", b":"]),
              st.binary(max_size=12)), max_size=30).map(b"\n".join)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(ROBOTS, MARKUP, st.integers(-5, 999))
def test_robots_of_any_bytes(body: bytes, path: str, status: int) -> None:
    rules = rules_for(status, body, "vitrail")
    url = resolve(PAGE, path) or PAGE
    assert rules.allows(url) in (True, False)
    assert rules.allows("http://h.test/robots.txt")
    assert 0 <= rules.crawl_delay < float("inf")


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["Envelope", "WARC-Header-Metadata", "WARC-Type", "WARC-Target-URI", "Payload-Metadata", "HTML-Metadata",
         "Links", "HTTP-Response-Metadata", "Head", "Base", "Metas", "path", "url", "alt", "Headers",
         "Response-Message"]),
        inner, max_size=4), max_leaves=20)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(JSON, JSON, JSON, JSON, st.binary(max_size=50))
def test_wat_records_of_any_json(any_: Any, head: Any, links_: Any, headers: Any, raw: bytes) -> None:
    html = {"Head": head, "Links": [{"path": "IMG@/src", "url": links_, "alt": any_}, links_]}
    answer = {"HTML-Metadata": html, "Headers": headers, "Response-Message": any_}
    record = {"Envelope": {"WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Target-URI": "http://h.test/"},
                           "Payload-Metadata": {"HTTP-Response-Metadata": answer}}}  # fmt: skip
    for body in (json.dumps(record).encode(), json.dumps(any_).encode(), raw, b"[" * 100_000):
        try:
            found = parse_wat(body, "vitrail")
        except ValueError:
            continue
        if found is not None:
            assert all(link.url.startswith("http") for link in found[1].images)


def outcome(run: Callable[[], object]) -> str:
    """What a command would say: "" or its one line."""
    try:
        run()
    except VitrailError as fault:
        return str(fault)
    return ""


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_indexes_and_tables_are_one_line(tmp_path: Path, data: st.DataObject) -> None:
    rows = [{"key": f"{i:020d}", "url": f"http://h.test/{i}.png", "alt": "a"} for i in range(50)]
    path = write_part(tmp_path / "index.parquet", pa.Table.from_pylist(rows, schema=INDEX), INDEX)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    said = outcome(lambda: read_table(path, INDEX))
    assert "\n" not in said
    (tmp_path / "w").mkdir(exist_ok=True)
    for old in (tmp_path / "w").iterdir():
        old.unlink()
    policy, columns = PolicyParams(token="vitrail"), TableColumns(alt="alt")
    item = ScanItem(open_store(str(tmp_path)), "index.parquet", tmp_path / "w/scan", policy, 1000, columns=columns)
    said = outcome(lambda: scan_file(item))
    assert not said or "no column" in said  # the damage hit a column's name
    if not said:
        assert pq.read_metadata(scan_file(item).links).num_rows <= 50


LINES = [
    b"WARC/1.0", b"HTTP/1.1 200 OK", b"HTTP/1.1 99999999999 OK", b"HTTP/1.1 -1", b"", b" folded",
    b"WARC-Type: response",
    b"WARC-Type: metadata", b"WARC-Target-URI: http://h.test/\xff\xed\xa0\x80", b"Content-Length: 300",
    b"WARC-Target-URI: http://h.test/robots.txt", b"Content-Length: -1", b"Content-Type: text/html; charset=\xff",
    b"Content-Type: application/http; msgtype=response", b"Location: http://[", b"Location: //h\xe9.test",
    b"Content-Encoding: gzip", b"<img src=a.png alt=\xff>", b"Transfer-Encoding: chunked", b"ffffffffffffffff",
]  # fmt: skip
HEADS = st.lists(st.one_of(st.sampled_from(LINES), st.binary(max_size=20)), max_size=25)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(HEADS, min_size=1, max_size=3))
def test_warc_records_of_any_lines_are_scanned(tmp_path: Path, records: list[list[bytes]]) -> None:
    start = [b"WARC/1.1", b"WARC-Type: response", b"WARC-Target-URI: http://h.test/", b"Content-Length: 400",
             b"Content-Type: application/http; msgtype=response"]  # fmt: skip
    bodies = [b"\r\n".join([*start, *lines]) + b"\r\n\r\n\r\n" for lines in ([b"", *r] for r in records)]
    (tmp_path / "a.warc").write_bytes(b"".join(bodies))
    for old in tmp_path.glob("scan*"):
        old.unlink()
    policy = PolicyParams(token="vitrail")
    result = scan_file(ScanItem(open_store(str(tmp_path)), "a.warc", tmp_path / "scan", policy, 99))
    assert all(row["url"].startswith("http") for row in pq.read_table(result.links).to_pylist())


def test_texts_that_are_no_unicode_are_stored_as_what_can_be(tmp_path: Path) -> None:
    links_ = [{"path": "IMG@/src", "url": "http://h.test/\ud800.png", "alt": "a\ud800"}]
    answer = {"HTML-Metadata": {"Head": {}, "Links": links_}}
    record = {"Envelope": {"WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Target-URI": "http://h.test/"},
                           "Payload-Metadata": {"HTTP-Response-Metadata": answer}}}  # fmt: skip
    with open(tmp_path / "a.wat.gz", "wb") as file:
        writer = WARCWriter(file, gzip=True)
        writer.write_record(writer.create_warc_record("http://h.test/", "metadata",
                            payload=io.BytesIO(json.dumps(record).encode())))  # fmt: skip
    raw = [b"http://h.test/a\xff", b"http://h.test/b"]
    offsets = np.cumsum([0, *map(len, raw)]).astype("<i4").tobytes()
    column = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(raw))])
    pq.write_table(pa.table({"url": column, "alt": column}), tmp_path / "b.parquet")
    for name, alts in (("a.wat.gz", ["a?"]), ("b.parquet", ["http://h.test/a\ufffd", "http://h.test/b"])):
        policy, columns = PolicyParams(token="vitrail"), TableColumns(alt="alt")
        item = ScanItem(open_store(str(tmp_path)), name, tmp_path / f"{name}.scan", policy, 10**6, columns=columns)
        rows = pq.read_table(scan_file(item).links).to_pylist()
        assert [row["alt"] for row in rows] == alts
        assert all(row["url"].isascii() for row in rows)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())))
def test_sources_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sources.json").write_bytes(content)
    with pytest.raises(VitrailError):
        Sources.load(tmp_path)


HUGE: dict[str, Callable[[], str]] = {
    "links": lambda: "<img src=a.png>" * 3_000_000,
    "different links": lambda: "".join(f"<img src={i}.png>" for i in range(600_000)),
    "nested": lambda: "<div>" * 2_000_000 + "<img src=a.png>",
    "nested fonts": lambda: "".join(f"<font a={i}>" for i in range(500_000)),
    "one picture": lambda: "<picture>" + "<source srcset=a.webp><img src=b.png>" * 100_000,
    "one srcset": lambda: "<img srcset='" + "a.png 1x," * 1_000_000 + "'>",
    "one alt": lambda: f"<img src=a.png alt='{'x' * 10_000_000}'>",
    "one data address": lambda: f"<img src='data:image/png;base64,{'A' * 10_000_000}'>",
    "one address": lambda: f"<img src='{'a/' * 5_000_000}'>",
    "attributes": lambda: "<img " + "".join(f"a{i}=b " for i in range(300_000)) + "src=a.png>",
    "open tag": lambda: "<img src='a" * 1_000_000,
    "metas": lambda: "<meta name=robots content='x, y, z'>" * 250_000,
    "anchors": lambda: "<a href=x>" * 1_000_000,
}
TOO_COSTLY = ("nested", "nested fonts", "attributes")  # each takes a parser by the standard minutes to hours


@pytest.mark.parametrize("name", HUGE)
def test_pages_that_are_too_much_take_seconds_and_few_links(name: str) -> None:
    limits = SandboxParams(seconds=1.0 if name in TOO_COSTLY else 20.0)
    page = read_page(HUGE[name]()[:10_000_000], PAGE, "vitrail", limits)  # max_page_bytes
    assert (page is None) == (name in TOO_COSTLY)
    if page is not None:
        assert len(page.images) <= links.MAX_TAGS
        assert all(len(link.alt) <= 2000 and len(link.url) <= 9000 for link in page.images)


@settings(max_examples=30, deadline=None)
@given(MARKUP)
def test_a_page_is_read_apart_as_it_is_here(html: str) -> None:
    html = html.encode("utf-8", "replace").decode()
    long = html + " " * pages.EASY
    assert read_page(long, PAGE, "vitrail", SandboxParams()) == parse_page(long, PAGE)


def test_a_page_of_a_hundred_megabytes_is_read_up_to_its_cap(tmp_path: Path) -> None:
    with open(tmp_path / "a.warc.gz", "wb") as file:
        writer = WarcWriter(file)
        body = b"<img src=first.png>" + b" " * 100_000_000 + b"<img src=last.png>"
        writer.response(PAGE, 200, "OK", [("Content-Type", "text/html")], body)
        writer.response("http://h.test/deep", 200, "OK", [("Content-Type", "text/html")], b"<div>" * 200_000)
        writer.response("http://[bad/", 200, "OK", [("Content-Type", "text/html")], b"<img src=x.png>")
        writer.response("http://h.test/", 302, "OK", [("Location", "http://[bad/")], b"")
        writer.response("http://h.test/b", 200, "OK", [("Content-Type", "text/html")], b"<img src=http://h.test/b.png>")
    item = ScanItem(open_store(str(tmp_path)), "a.warc.gz", tmp_path / "scan", PolicyParams(token="vitrail"), 1_000_000,
                    sandbox=SandboxParams(seconds=0.5))  # fmt: skip
    result = scan_file(item)
    assert [row["url"] for row in pq.read_table(result.links).to_pylist()] == [
        "http://site.test/a/first.png", "http://h.test/b.png"
    ]  # fmt: skip
    counted = [result.counts[name] for name in ("pages", "pages-cut", "pages-too-costly", "bad-addresses")]
    assert counted == [3, 1, 1, 1]


def test_a_crawl_full_of_bombs_keeps_what_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def untracked(*_: object, **__: object) -> Iterator[tracking.Run]:
        yield tracking.null_run()

    monkeypatch.setattr(tracking, "run", untracked)
    large = ("PNG", "GIF", "WEBP")
    bombs = {f"{kind}-declared": bomb(kind) for kind in KINDS} | {f"{kind}-large": unpacking(kind)[0] for kind in large}
    frames = saved(noise(seed=2), "GIF")[:-1] + b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0" * 100_000 + b";"
    files = {"good": saved(noise(), "PNG"), **bombs, "frames": frames, "deflated": saved(noise(seed=1), "PNG")}
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in/a.warc.gz", "wb") as file:
        writer = WarcWriter(file)
        html = "".join(f"<img src={name}>" for name in ("../../../../etc/passwd", "..%2f..%2fx", *files))
        writer.response(PAGE, 200, "OK", [("Content-Type", "text/html")], html.encode() + b" " * 60_000)
        for name, body in files.items():
            coding = [("Content-Encoding", "gzip")] * (name == "deflated")
            body = gzip.compress(body + bytes(30_000_000), 1) if coding else body
            writer.response(f"http://site.test/a/{name}", 200, "OK", [("Content-Type", "image/png"), *coding], body)
    Sources(root=str(tmp_path / "in"), files=(SourceFile(path="a.warc.gz", kind="warc"),)).save(tmp_path)
    overlays = [f'policy.restricted=["{ROOT}/params/policy/restricted-domains.txt"]', "executor.workers=0",
                "nsfw.enabled=false", "faces.enabled=false", "sandbox.megabytes=64"]  # fmt: skip
    params = load_params(ROOT / "params/curate.yaml", CurateParams, overlays)
    context = StageContext(StorageParams(root="data"), None, tmp_path / "r.json")
    stage.run(params, stage.CurateInputs(tmp_path), tmp_path / "out", context)
    index = read_table(tmp_path / "out/index", INDEX).to_pylist()
    rows = {row["url"].rpartition("/")[2]: row["reason"] for row in index}
    assert [name for name, reason in rows.items() if not reason] == ["good"]
    assert {rows[f"{kind}-declared"] for kind in KINDS} == {"too-many-pixels", "not-an-image"}
    assert {rows[f"{kind}-large"] for kind in large} <= {"too-much-memory", "corrupt", "decoder-crash"}
    assert (rows["frames"], rows["deflated"]) == ("too-many-frames", "too-many-bytes")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "sources.json", "out", "r.json", "gx"}
    with tarfile.open(next((tmp_path / "out/shards").iterdir())) as shard:
        assert len(shard.getmembers()) == 1


def test_robots_rules_without_number_or_end() -> None:
    began = time.process_time()
    many = parse(b"User-agent: *\n" + b"Disallow: /*a*b*c*d$\n" * 100_000, "vitrail")
    assert not many.allows("http://h.test/xaxbxcxd")
    assert many.allows("http://h.test/" + "abc" * 2000)
    parse(b"Disallow: " + b"/" * 10_000_000, "vitrail")
    parse(b"\xff" * MAX_BYTES, "vitrail")
    assert time.process_time() - began < 5
