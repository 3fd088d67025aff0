"""Responses as browsers read them: heads with odd line ends, types, codings and encodings, from WARC records."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.web.formats.charset import codec_of, decode_text
from components.web.formats.coding import decode_body
from components.web.formats.content_type import content_type_of
from components.web.formats.http_head import MAX_FIELDS, MAX_HEAD, read_head
from components.web.formats.warc import Faults, Response, read_warc

BODY = b"<p>hello"


def record(path: Path, block: bytes) -> Path:
    head = "WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:1>\r\nWARC-Target-URI: http://h.test/\r\n"
    head += "WARC-Date: 2020-01-01T00:00:00Z\r\nContent-Type: application/http; msgtype=response\r\n"
    path.write_bytes(head.encode() + b"Content-Length: %d\r\n\r\n" % len(block) + block + b"\r\n\r\n")
    return path


def read(path: Path, block: bytes) -> tuple[Response | None, Faults]:
    faults = Faults()
    found = list(read_warc(record(path, block), faults, 1_000_000))
    return (found[0] if found else None), faults


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\r\n"])
@pytest.mark.parametrize("last", [b"\n", b"\r\n", b"\r\r\n"])
def test_heads_end_their_lines_in_many_ways(tmp_path: Path, end: bytes, last: bytes) -> None:
    lines = [
        b"HTTP/1.1 200 OK",
        b"Content-Type: text/html",
        b"X-Robots-Tag : noai",
        b"none",
        b": x",
        b" folded",
    ]
    found, faults = read(tmp_path / "x.warc", end.join(lines) + end + last + BODY)
    assert found is not None
    assert (found.status, found.content_type, found.body, found.cut) == (200, "text/html", BODY, False)
    assert found.values("x-robots-tag") == ["noai folded"]
    assert not faults.counts


@pytest.mark.parametrize(
    ("first", "status"),
    [(b"HTTP/1.1 200", 200), (b"http/1.0  404  Not  Found", 404), (b"HTTP/2 200", 200), (b"ICY 200 OK", 200),
     (b"\r\nHTTP/1.1 301 \xe9", 301)],
)  # fmt: skip
def test_first_lines(first: bytes, status: int) -> None:
    head = read_head(first + b"\r\n\r\nbody")
    assert head is not None
    assert head.status == status


@pytest.mark.parametrize(
    "block", [b"", b"<html>", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n", b"SSH-2.0\r\n\r\n"]
)
def test_what_is_no_response_is_counted(tmp_path: Path, block: bytes) -> None:
    found, faults = read(tmp_path / "x.warc", block)
    assert found is None
    assert faults.counts == {"http-unreadable": 1}


def test_a_head_has_its_bounds() -> None:
    many = read_head(b"HTTP/1.1 200 OK\n" + b"a: b\n" * (MAX_HEAD // 5 - 100) + b"\n")
    assert many is not None
    assert len(many.fields) == MAX_FIELDS
    with pytest.raises(ValueError, match="bytes"):
        read_head(b"HTTP/1.1 200 OK\n" + b"a: b\n" * (MAX_HEAD // 5 + 100) + b"\n")
    assert read_head(b"HTTP/1.1 200 OK\r\nContent-") is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_no_bytes_break_the_reader(data: bytes, whole: bool) -> None:
    for text in (data, b"HTTP/1.1 200 OK\r\n" + data):
        try:
            head = read_head(text, whole)
        except ValueError:
            continue
        if head is not None:
            assert head.size <= len(text)
            assert all("\n" not in value and "\r" not in value for _, value in head.fields)


@pytest.mark.parametrize(
    ("values", "body", "expected"),
    [
        (["text/html", "image/png"], b"", "image/png"),  # the last that is one
        (["TEXT/HTML; charset=x"], b"", "text/html"),
        (["text/html", "nonsense"], b"", "text/html"),
        (["text/html", ""], b"", "text/html"),
        (["text/html, image/png"], b"", "image/png"),
        (["*/*"], BODY, "text/html"),
        ([], b"\xef\xbb\xbf \n<!DOCTYPE html>", "text/html"),
        ([""], b"<!-- x -->", "text/html"),
        ([], b"<b>", "text/html"),
        ([], b"<bees>", ""),
        ([], b"\x89PNG", ""),
        (["text/plain"], BODY, "text/plain"),
    ],
)
def test_types(values: list[str], body: bytes, expected: str, tmp_path: Path) -> None:
    assert content_type_of(values, body) == expected
    lines = "".join(f"Content-Type: {value}\r\n" for value in values)
    found, _ = read(tmp_path / "x.warc", f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + body)
    assert found is not None
    assert found.content_type == expected


@pytest.mark.parametrize(
    ("label", "text", "codec"),
    [
        ("gb2312", "\u9555\u20ac\u3402", "gb18030"), ("gbk", "\u9555", "gb18030"),
        ("shift_jis", "\u2460\uff5e", "cp932"),
        ("x-sjis", "\u2460", "cp932"), ("ks_c_5601-1987", "\ub620", "cp949"), ("euc-kr", "\ub620", "cp949"),
        ("iso-8859-1", "\u20ac\u201c", "cp1252"), ("latin1", "\u2019", "cp1252"), ("us-ascii", "\u2019", "cp1252"),
        ("iso-8859-9", "\u20ac\u011f", "cp1254"), ("tis-620", "\u20ac\u0e01", "cp874"),
        ("big5-hkscs", "\u4e2d", "big5hkscs"),
        ("unicode-1-1-utf-8", "\u00e9", "utf-8"), (" UTF8 ", "\u00e9", "utf-8"), ("koi", "\u0436", "koi8-r"),
        ("x-user-defined", "\u20ac", "cp1252"), ("dos-874", "\u0e01", "cp874"), ("windows-949", "\ub620", "cp949"),
    ],
)  # fmt: skip
def test_labels_mean_what_browsers_take_them_for(label: str, text: str, codec: str) -> None:
    body = text.encode(codec) + b"x"
    response = Response("", 200, {"content-type": f'text/html; charset="{label}"'}, body, False, 0)
    assert decode_text(response) == text + "x"


def test_labels_that_no_browser_knows_or_that_hide_markup() -> None:
    assert [codec_of(label) for label in ("utf-7", "utf-32", "cp037", "rot13", "idna", "", "base64")] == [""] * 7
    assert codec_of("iso-2022-kr") == codec_of("hz-gb-2312") == "ascii"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"<meta charset=utf-16><img alt=\xc3\xa9>", "\u00e9"),  # a page whose ASCII can be read is not in UTF-16
        (b"<meta charset=utf-16le><img alt=\xc3\xa9>", "\u00e9"),
        (b"<meta charset=x-user-defined>\x80", "\u20ac"),
        (b"<!--<meta charset=koi8-r>--><meta charset=windows-1251>\xc9", "\u0419"),
        (b"<meta http-equiv=content-type content='text/html; charset=windows-1251'>\xc9", "\u0419"),
        (b"<meta name=x content='no'><meta charset='nonsense'><meta charset=\"koi8-r\">\xc9", "\u0438"),
        ("<p>\u00e9".encode("utf-16-le"), "\u00e9"),
        ("\ufeff<p>\u00e9".encode("utf-16-be"), "\u00e9"),
        (b"<p>\xe9", "\u00e9"),
    ],
)
def test_pages_say_their_encoding(body: bytes, expected: str) -> None:
    assert expected in decode_text(Response("", 200, {}, body, False, 0))


def test_codings_over_each_other_and_their_bounds() -> None:
    twice = gzip.compress(gzip.compress(b"a" * 1000))
    assert decode_body(twice, {"content-encoding": "gzip, x-gzip"}, 2000) == (b"a" * 1000, True)
    assert decode_body(twice, {"content-encoding": "gzip, gzip"}, 100) == (b"a" * 100, False)
    bomb = gzip.compress(bytes(50_000_000))
    body, whole = decode_body(bomb, {"content-encoding": "gzip"}, 1000)
    assert (len(body), whole) == (1000, False)
    assert decode_body(b"x", {"content-encoding": ", ".join(["gzip"] * 9)}, 10) == (b"", False)
