"""Fuzzing of every parser of the crawl: they end, with a result or their declared error; and pages that are too much."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.curate import links
from components.curate.keys import key_of
from components.curate.links import header_opts_out, parse_page, parse_srcset, resolve
from components.curate.policy import PolicyParams, origin, registrable_domain
from components.curate.robots import MAX_BYTES, parse, rules_for
from components.curate.scan import ScanItem, TableColumns, scan_file
from components.curate.sources import Sources
from components.curate.warc import Response, WarcWriter, decode_text
from components.curate.wat import parse_wat
from components.errors import VitrailError
from components.images.tables import INDEX, read_table, write_table
from components.storage import open_store

PAGE = "http://site.test/a/b.html"
FRAGMENTS = st.sampled_from([
    "<img", " src=", " srcset=", "'", '"', ">", "<picture>", "</picture>", "<source", "<base href=", "//", "http:", "[::1",
    "%zz", "\0", "\ud800", "&#xD800;", "&#0;", "<!--", "-->", "<script>", "<noscript>", "<template>", "<svg>", "<math>",
    "<![CDATA[", "<meta name=robots content=", "noai", "data:", ",", " 1e999x", " 99999999999999999999w", "(", ")",
    "é", "\U0001f600", "<frameset>", "<plaintext>", "<table>", "</p>", "@", ":99999", "\r", "\t", "..", "/./", "İ", "ß.test",
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


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.text(max_size=60))
def test_pages_of_any_bytes_and_labels(body: bytes, label: str) -> None:
    for kind in (label, f"text/html; charset={label}", "text/html"):
        decode_text(Response("u", 200, {"content-type": kind}, body, False, 0)).encode()


ROBOTS = st.lists(
    st.one_of(st.sampled_from([b"User-agent: *", b"User-agent: vitrail", b"Disallow: /", b"Allow: /*$", b"Crawl-delay: 1e9",
                               b"Disallow: /**********a", b"\xff\xfe", b"Sitemap: x", b"#", b"\r", b"\n", b"%", b":"]),
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
        ["Envelope", "WARC-Header-Metadata", "WARC-Type", "WARC-Target-URI", "Payload-Metadata", "HTML-Metadata", "Links",
         "HTTP-Response-Metadata", "Head", "Base", "Metas", "path", "url", "alt", "Headers", "Response-Message"]),
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


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_indexes_and_tables_are_one_line(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "index.parquet"
    write_table(path, [{"key": f"{i:020d}", "url": f"http://h.test/{i}.png", "alt": "a"} for i in range(50)], INDEX)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_table(path, INDEX).schema.names == INDEX.names
    except VitrailError as fault:
        assert "\n" not in str(fault)
    (tmp_path / "w").mkdir(exist_ok=True)
    for old in (tmp_path / "w").iterdir():
        old.unlink()
    item = ScanItem(open_store(str(tmp_path)), "index.parquet", tmp_path / "w/scan", PolicyParams(token="vitrail"), 1000,
                    columns=TableColumns(alt="alt"))  # fmt: skip
    try:
        result = scan_file(item)
    except VitrailError as fault:  # the damage hit a column's name
        assert "no column" in str(fault)
    else:
        assert pq.read_metadata(result.links).num_rows <= 50


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())))
def test_sources_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sources.json").write_bytes(content)
    with pytest.raises(VitrailError):
        Sources.load(tmp_path)


HUGE = {
    "links": lambda: "<img src=a.png>" * 3_000_000,
    "different links": lambda: "".join(f"<img src={i}.png>" for i in range(2_000_000)),
    "nested": lambda: "<div>" * 5_000_000 + "<img src=a.png>",
    "one picture": lambda: "<picture>" + "<source srcset=a.webp><img src=b.png>" * 600_000,
    "one srcset": lambda: "<img srcset='" + "a.png 1x," * 2_000_000 + "'>",
    "one alt": lambda: f"<img src=a.png alt='{'x' * 30_000_000}'>",
    "one data address": lambda: f"<img src='data:image/png;base64,{'A' * 30_000_000}'>",
    "one address": lambda: f"<img src='{'a/' * 10_000_000}'>",
    "attributes": lambda: "<img " + "".join(f"a{i}=b " for i in range(300_000)) + "src=a.png>",
    "open tag": lambda: "<img src='a" * 3_000_000,
    "metas": lambda: "<meta name=robots content='x, y, z'>" * 800_000,
    "anchors": lambda: "<a href=x>" * 3_000_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_pages_that_are_too_much_take_seconds_and_few_links(name: str) -> None:
    html = HUGE[name]()[:10_000_000]  # max_page_bytes
    began = time.process_time()
    page = parse_page(html, PAGE)
    assert time.process_time() - began < 20  # for ten megabytes; an endless one would take hours
    assert len(page.images) <= links.MAX_TAGS
    assert all(len(link.alt) <= 2000 and len(link.url) <= 9000 for link in page.images)


def test_a_page_of_a_hundred_megabytes_is_read_up_to_its_cap(tmp_path: Path) -> None:
    with open(tmp_path / "a.warc.gz", "wb") as file:
        writer = WarcWriter(file)
        body = b"<img src=first.png>" + b" " * 100_000_000 + b"<img src=last.png>"
        writer.response(PAGE, 200, "OK", [("Content-Type", "text/html")], body)
        writer.response("http://[bad/", 200, "OK", [("Content-Type", "text/html")], b"<img src=x.png>")
        writer.response("http://h.test/", 302, "OK", [("Location", "http://[bad/")], b"")
        writer.response("http://h.test/b", 200, "OK", [("Content-Type", "text/html")], b"<img src=http://h.test/b.png>")
    item = ScanItem(open_store(str(tmp_path)), "a.warc.gz", tmp_path / "scan", PolicyParams(token="vitrail"), 1_000_000)
    result = scan_file(item)
    assert [row["url"] for row in pq.read_table(result.links).to_pylist()] == [
        "http://site.test/a/first.png", "http://h.test/b.png"
    ]  # fmt: skip
    assert (result.counts["pages"], result.counts["pages-cut"], result.counts["bad-addresses"]) == (2, 1, 1)


def test_robots_rules_without_number_or_end() -> None:
    began = time.process_time()
    many = parse(b"User-agent: *\n" + b"Disallow: /*a*b*c*d$\n" * 100_000, "vitrail")
    assert not many.allows("http://h.test/xaxbxcxd")
    assert many.allows("http://h.test/" + "abc" * 2000)
    parse(b"Disallow: " + b"/" * 10_000_000, "vitrail")
    parse(b"\xff" * MAX_BYTES, "vitrail")
    assert time.process_time() - began < 5
