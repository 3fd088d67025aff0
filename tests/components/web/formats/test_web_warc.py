"""WARC files: round trip, range reads, and every kind of damage counted while the rest is read."""

from __future__ import annotations

import gzip
import io
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.web.formats.charset import decode_text
from components.web.formats.warc import Faults, Response, WarcWriter, read_record, read_warc

BODIES = [bytes([65 + i]) * 3000 + bytes(range(256)) * 4 for i in range(6)]


def write(path: Path, bodies: list[bytes] = BODIES, **headers: str) -> list[int]:
    offsets = []
    with open(path, "wb") as file:
        writer = WarcWriter(file, "2026-01-01T00:00:00Z")
        writer.info({"software": "test"})
        for number, body in enumerate(bodies):
            offsets.append(file.tell())
            sent = [("Content-Type", "image/png"), *((k.replace("_", "-"), v) for k, v in headers.items())]
            writer.response(f"http://h.test/{number}", 200, "OK", sent, body)
    return offsets


def read(path: Path, max_bytes: int = 1 << 20) -> tuple[list[Response], dict[str, int]]:
    faults = Faults()
    return list(read_warc(path, faults, max_bytes)), dict(faults.counts)


def test_round_trip_and_range_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    offsets = write(path)
    found, faults = read(path)
    assert faults == {}
    assert [r.body for r in found] == BODIES
    assert [r.offset for r in found] == offsets
    data = path.read_bytes()
    for response in found:
        alone = read_record(data[response.offset : response.offset + response.length], 1 << 20)
        assert alone is not None
        assert (alone.url, alone.body, alone.cut) == (response.url, response.body, False)


def test_the_same_crawl_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.warc.gz")
    write(tmp_path / "b.warc.gz")
    assert (tmp_path / "a.warc.gz").read_bytes() == (tmp_path / "b.warc.gz").read_bytes()


def test_uncompressed(tmp_path: Path) -> None:
    write(tmp_path / "a.warc.gz")
    raw = gzip.decompress((tmp_path / "a.warc.gz").read_bytes())
    (tmp_path / "a.warc").write_bytes(raw)
    found, faults = read(tmp_path / "a.warc")
    assert faults == {}
    assert [r.body for r in found] == BODIES
    last = found[3]
    assert read_record(raw[last.offset : last.offset + last.length], 1 << 20).body == BODIES[3]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.77, 0.95])
def test_cut_anywhere_counts_one_fault_and_keeps_what_is_whole(tmp_path: Path, share: float, compressed: bool) -> None:
    path = tmp_path / ("a.warc.gz" if compressed else "a.warc")
    write(tmp_path / "whole.warc.gz")
    data = (tmp_path / "whole.warc.gz").read_bytes()
    if not compressed:
        data = gzip.decompress(data)
    path.write_bytes(data[: int(len(data) * share)])
    found, faults = read(path)
    whole = [r for r in found if not r.cut]
    assert [r.body for r in whole] == BODIES[: len(whole)]
    assert len(whole) >= int(6 * share) - 1
    assert faults == {"warc-truncated": 1}


def test_a_corrupt_record_is_jumped_over(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    offsets = write(path)
    data = bytearray(path.read_bytes())
    for place in (offsets[1] + 3, offsets[3] + 60):
        data[place : place + 30] = b"\xee" * 30
    path.write_bytes(data)
    found, faults = read(path)
    good = {r.url[-1]: r.body for r in found if not r.cut}
    assert good == {str(i): BODIES[i] for i in (0, 2, 4, 5)}
    assert faults == {"warc-corrupt": 2}


@pytest.mark.parametrize("content", [b"", b"not a WARC at all, but text\n" * 50, b"\x1f\x8b\x08" + bytes(50)])
def test_no_warc_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.warc.gz").write_bytes(content)
    found, faults = read(tmp_path / "x.warc.gz")
    assert found == []
    assert sum(faults.values()) == bool(content)


def test_content_coding_chunks_and_caps(tmp_path: Path) -> None:
    write(tmp_path / "a.warc.gz", [gzip.compress(b"x" * 5000)], content_encoding="gzip")
    assert read(tmp_path / "a.warc.gz")[0][0].body == b"x" * 5000
    write(tmp_path / "b.warc.gz", [b"5\r\nhello\r\n3\r\n me\r\n0\r\n\r\n"], transfer_encoding="chunked")
    assert read(tmp_path / "b.warc.gz")[0][0].body == b"hello me"
    write(tmp_path / "c.warc.gz", [gzip.compress(bytes(10_000_000))], content_encoding="gzip")
    bomb = read(tmp_path / "c.warc.gz", max_bytes=100_000)[0][0]
    assert (len(bomb.body), bomb.cut) == (100_000, True)
    write(tmp_path / "d.warc.gz", [bytes(50_000)])
    long = read(tmp_path / "d.warc.gz", max_bytes=10_000)[0][0]
    assert (len(long.body), long.cut) == (10_000, True)


def coded(content: bytes, writer: str) -> bytes:
    from fastwarc import stream_io

    buffer = io.BytesIO()
    out = getattr(stream_io, writer)(buffer)
    out.write(content)
    out.close()
    return buffer.getvalue()


@pytest.mark.parametrize(("coding", "writer"), [("br", "BrotliWriter"), ("zstd", "ZstdWriter")])
def test_brotli_and_zstd_contents_and_their_bombs(tmp_path: Path, coding: str, writer: str) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(50)
    whole = coded(b"x" * 5000, writer)
    bomb = coded(bytes(50_000_000), writer)
    assert len(bomb) < 100_000
    tracemalloc.start()
    write(tmp_path / "a.warc.gz", [whole, bomb, whole[:-3], b"\xff" * 40, png, b""], content_encoding=coding)
    found, faults = read(tmp_path / "a.warc.gz", max_bytes=100_000)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert faults == {}
    assert [(len(r.body), r.cut) for r in found[:2]] == [(5000, False), (100_000, True)]
    assert len(found[2].body) <= 5000
    assert [(r.body, r.cut) for r in found[3:]] == [(b"", True), (png, False), (b"", False)]


def test_a_response_that_the_crawler_cut_says_so(tmp_path: Path) -> None:
    with open(tmp_path / "a.warc.gz", "wb") as file:
        WarcWriter(file).response("http://h.test/", 200, "OK", [("Content-Type", "image/png")], b"half", "length")
    found, faults = read(tmp_path / "a.warc.gz")
    assert found[0].cut
    assert faults == {}  # not the file's fault


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("text/html; charset=iso-8859-2", "ł".encode("iso-8859-2"), "ł"),
        ("text/html; charset=iso-8859-1", "€".encode("cp1252"), "€"),
        ("text/html; charset=utf-8", b"\xff\xfe" + "ł".encode("utf-16-le"), "ł"),
        ("text/html", b'<meta charset="windows-1251">' + "я".encode("cp1251"), '<meta charset="windows-1251">я'),
        ("text/html", "ü".encode(), "ü"),
        ("text/html", b"caf\xe9", "café"),
        ("text/html; charset=nonsense", "ü".encode(), "ü"),
        ("text/html; charset=utf-8", b"a\xffb", "a\ufffdb"),
        ("text/html; charset=base64", "ü".encode(), "ü"),
        ("text/html; charset=idna", "ü".encode(), "ü"),
        ("text/html; charset=utf-7", b"+2AA-", "+2AA-"),
    ],
)
def test_page_encodings(content_type: str, body: bytes, expected: str) -> None:
    assert decode_text(Response("u", 200, {"content-type": content_type}, body, False, 0)) == expected


def test_another_writer_and_other_record_types(tmp_path: Path) -> None:
    from warcio.warcwriter import WARCWriter

    buffer = io.BytesIO()
    writer = WARCWriter(buffer)
    writer.write_record(
        writer.create_warc_record(
            "http://h.test/i.png", "resource", payload=io.BytesIO(b"png"), warc_content_type="image/png"
        )
    )
    writer.write_record(
        writer.create_warc_record("http://h.test/", "request", payload=io.BytesIO(b"GET / HTTP/1.1\r\n\r\n"))
    )
    (tmp_path / "a.warc.gz").write_bytes(buffer.getvalue())
    found, faults = read(tmp_path / "a.warc.gz")
    assert [(r.url, r.content_type, r.body) for r in found] == [("http://h.test/i.png", "image/png", b"png")]
    assert faults == {}


def as_zstd(raw: bytes, whole: bool = False) -> bytes:
    """A plain WARC compressed with zstd, by record as the standard asks, or as one frame."""
    from fastwarc.stream_io import ZstdWriter

    records = [raw] if whole else [b"WARC/1.1" + record for record in raw.split(b"WARC/1.1")[1:]]
    frames = []
    for record in records:
        buffer = io.BytesIO()
        writer = ZstdWriter(buffer)
        writer.write(record)
        writer.close()
        frames.append(buffer.getvalue())
    return b"".join(frames)


def plain(tmp_path: Path) -> bytes:
    write(tmp_path / "plain.warc.gz")
    return gzip.decompress((tmp_path / "plain.warc.gz").read_bytes())


def test_zstd_by_record_round_trip_and_damage(tmp_path: Path) -> None:
    data = as_zstd(plain(tmp_path))
    (tmp_path / "a.warc.zst").write_bytes(data)
    found, faults = read(tmp_path / "a.warc.zst")
    assert faults == {}
    assert [r.body for r in found] == BODIES
    for response in found:
        alone = read_record(data[response.offset : response.offset + response.length], 1 << 20)
        assert alone is not None
        assert alone.body == response.body
    broken = bytearray(data)
    broken[found[2].offset + 40] ^= 0xFF
    (tmp_path / "b.warc.zst").write_bytes(broken)
    rest, faults = read(tmp_path / "b.warc.zst")
    assert {r.url for r in found} - {r.url for r in rest} <= {"http://h.test/2", "http://h.test/3"}
    assert faults == {"warc-corrupt": 1}
    (tmp_path / "c.warc.zst").write_bytes(data[:-100])
    assert read(tmp_path / "c.warc.zst")[1] == {"warc-truncated": 1}


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_file_compressed_as_a_whole_says_so_and_its_pages_are_read(tmp_path: Path, kind: str) -> None:
    raw = plain(tmp_path)
    (tmp_path / f"a.warc.{kind}").write_bytes(gzip.compress(raw) if kind == "gz" else as_zstd(raw, whole=True))
    found, faults = read(tmp_path / f"a.warc.{kind}")
    assert [r.body for r in found] == BODIES
    assert faults == {"warc-whole": 1}


def test_a_plain_file_is_read_past_a_damaged_place(tmp_path: Path) -> None:
    raw = plain(tmp_path)
    (tmp_path / "a.warc").write_bytes(raw)
    found, _ = read(tmp_path / "a.warc")
    broken = bytearray(raw)
    at = found[2].offset
    broken[at : at + 8] = b"GARBAGE!"
    (tmp_path / "b.warc").write_bytes(broken)
    rest, faults = read(tmp_path / "b.warc")
    assert [r.url[-1] for r in rest] == ["0", "1", "3", "4", "5"]
    assert sum(faults.values()) == 1


@pytest.mark.parametrize("length", [b"9999999999", b"-5", b"12x", b""])
def test_a_record_of_a_wrong_length_costs_itself_and_what_it_swallows(tmp_path: Path, length: bytes) -> None:
    raw = plain(tmp_path)
    parts = raw.split(b"Content-Length: ")
    digits = parts[4].partition(b"\r\n")[0]
    assert digits.isdigit()
    parts[4] = length + parts[4][len(digits) :]
    (tmp_path / "a.warc").write_bytes(b"Content-Length: ".join(parts))
    found, faults = read(tmp_path / "a.warc", max_bytes=10_000)
    assert [r.url[-1] for r in found[:2]] == ["0", "1"]
    assert faults
    assert all(len(r.body) <= 10_000 for r in found)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_of_any_kind_never_raise(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["warc", "warc.gz", "warc.zst"]))
    raw = plain(tmp_path)
    whole = {"warc": raw, "warc.gz": (tmp_path / "plain.warc.gz").read_bytes(), "warc.zst": as_zstd(raw)}[kind]
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                content[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del content[at : at + data.draw(st.integers(1, 500))]
            case _:
                content[at:at] = data.draw(st.binary(min_size=1, max_size=50))
        if not content:
            return
    (tmp_path / "a").write_bytes(content)
    found, _ = read(tmp_path / "a")
    for response in found:
        assert response.length >= 0
        read_record(bytes(content[response.offset : response.offset + response.length]), 1 << 20)


def test_plain_records_are_those_of_warcio_byte_for_byte() -> None:
    answers: list[tuple[str, int, str, list[tuple[str, str]], bytes, str]] = [
        ("http://a.test/", 200, "OK", [("Content-Type", "image/png"), ("X-A", "b; c")], b"abc" * 1000, ""),
        ("http://a.test/1", 404, "", [], b"", "length"),
        ("http://a.test/2", 302, "Tempor\u00e4r", [("X-\u00c4", "\u00fc\udcff")], b"\r\n\r\n", ""),
    ]
    packed, plain = io.BytesIO(), io.BytesIO()
    writers = WarcWriter(packed, "2026-01-01T00:00:00Z"), WarcWriter(plain, "2026-01-01T00:00:00Z", gzip=False)
    for writer in writers:
        writer.info({"software": "x"})
        for answer in answers:
            writer.response(*answer)
    assert plain.getvalue() == gzip.decompress(packed.getvalue())
    undated = io.BytesIO()
    WarcWriter(undated, gzip=False).response(*answers[0])
    assert re.search(rb"\r\nWARC-Date: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\r\n", undated.getvalue())
