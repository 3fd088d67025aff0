"""WARC files: what a crawl wrote, read record by record; faults are counted, never fatal while anything can be read.

A response is found again by the offset and length of its record, so later passes read single records by range, from a
local file and from S3 alike. That needs each record compressed by itself, as the WARC standard asks for gzip and zstd;
of a file compressed as a whole the pages can be read, images in it cannot. Reader: FastWARC. Writer: warcio.
"""

from __future__ import annotations

import base64
import hashlib
import io
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from components.web.formats.coding import decode_body
from components.web.formats.content_type import content_type_of
from components.web.formats.http_head import MAX_HEAD, read_head

SUFFIXES = (".warc", ".warc.gz", ".warc.zst")
WAT_SUFFIXES = (".wat", ".wat.gz", ".wat.zst")
_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PLAIN_MAGIC = b"\r\n\r\nWARC/1."  # a record's end and the next one's first line
_PRINTABLE = "".join(chr(code) for code in range(128))
_MAX_RESYNCS = 1000  # damaged places in one file after which the rest is left


@dataclass
class Hop:
    """One response as received."""

    url: str
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    cut: str = ""  # WARC's word: "length", "time" or "unspecified" (we stopped reading)

    def header(self, name: str) -> str:
        """The first header ``name`` (lower case); "" when there is none."""
        return next(iter(self.values(name)), "")

    def values(self, name: str) -> list[str]:
        """The value of each header ``name`` (lower case)."""
        return [value for known, value in self.headers if known.lower() == name]

    def response(self, max_bytes: int) -> Response:
        """The response as :func:`read_warc` would give it, without its place in a file."""
        fields = tuple((name.lower(), value) for name, value in self.headers)
        joined = _joined(fields)
        body, whole = decode_body(self.body, joined, max_bytes)
        return Response(self.url, self.status, joined, body, bool(self.cut) or not whole, 0, fields=fields)


@dataclass
class Response:
    """One HTTP response (or WARC resource) of a crawl."""

    url: str
    status: int
    headers: dict[str, str]  # lower-case names; repeated ones joined with ", "
    body: bytes  # content decoded; at most the reader's max_bytes
    cut: bool  # the record holds less than the response: byte cap of reader or crawler, or a damaged file
    offset: int  # of the record in the file, bytes
    length: int = 0  # of the record, bytes (as compressed)
    fields: tuple[tuple[str, str], ...] = ()  # (lower-case name, value) of each header as it was sent

    def values(self, name: str) -> list[str]:
        """The value of each header ``name`` (lower case)."""
        if not self.fields:
            return [self.headers[name]] if name in self.headers else []
        return [value for known, value in self.fields if known == name]

    @property
    def content_type(self) -> str:
        """Lower case, without parameters: the last Content-Type that is one, else what the body begins as."""
        return content_type_of(self.values("content-type"), self.body)


@dataclass
class Faults:
    """What was wrong with the files read, by kind.

    "warc-truncated", "warc-corrupt", "warc-unreadable", "warc-whole": compressed as a whole, not by record; and
    "http-unreadable": a response record without the head of an HTTP response.
    """

    counts: Counter[str] = field(default_factory=Counter)


def read_warc(path: Path, faults: Faults, max_bytes: int, wat: bool = False) -> Iterator[Response]:
    """Every response in the WARC at ``path``, in order; damaged places are jumped over.

    One damaged place counts once in ``faults``, however many members have to be tried to get past it. With ``wat``
    its metadata records come instead, as responses whose body is JSON.
    """
    size = path.stat().st_size
    make = _metadata if wat else _response
    with open(path, "rb") as file:
        plain = file.read(5) == b"WARC/"
        start, resyncs, damaged, seen = 0, 0, False, False
        while start < size:
            previous: Response | None = None
            at = start
            try:
                for record in _iterate(file, start):
                    at, damaged, seen = int(record.stream_pos), False, True
                    if previous is not None:
                        previous.length = at - previous.offset
                        if not previous.length:
                            faults.counts["warc-whole"] = 1
                        yield previous
                        previous = None
                    previous = make(record, max_bytes, faults)
                    if plain and int(record.content_length) > size - at:
                        raise ValueError("record of a length that leads to the unexpected end of the file")
                if previous is not None:
                    previous.length = size - previous.offset
                    if previous.cut and len(previous.body) < max_bytes and "warc-truncated" not in previous.headers:
                        faults.counts["warc-truncated"] += 1
                    yield previous
                elif not seen:
                    faults.counts["warc-unreadable"] += 1
                return
            except (OSError, ValueError) as fault:
                resyncs += 1
                found = _next_member(file, max(at, start) + 1) if resyncs <= _MAX_RESYNCS else None
                if previous is not None:
                    previous.length = (size if found is None else found) - previous.offset
                    yield previous
                if found is None and _is_cut(fault):
                    faults.counts["warc-truncated"] += 1
                    if damaged:  # the same place, counted as corrupt before it was seen to be the end
                        faults.counts.subtract(["warc-corrupt"])
                        faults.counts += Counter()
                elif not damaged:
                    faults.counts["warc-corrupt" if at or found is not None or previous else "warc-unreadable"] += 1
                if found is None:
                    return
                start, damaged = found, True


def read_record(data: bytes, max_bytes: int) -> Response | None:
    """The response in ``data``, the bytes of one WARC record; None when there is none to be read."""
    try:
        for record in _iterate(io.BytesIO(data), 0):
            return _response(record, max_bytes, Faults())
    except (OSError, ValueError):
        return None
    return None


class WarcWriter:
    """Writes responses as WARC 1.1 records, each gzipped by itself unless told otherwise.

    With ``date`` fixed, equal responses give equal bytes.
    """

    def __init__(self, file: BinaryIO, date: str | None = None, gzip: bool = True) -> None:
        from warcio.warcwriter import WARCWriter

        self._writer: Any = WARCWriter(file, gzip=gzip, warc_version="1.1")
        self._plain = None if gzip else file
        self._date = date
        self._count = 0

    def info(self, fields: dict[str, str]) -> None:
        """Write the ``warcinfo`` record that says who crawled."""
        record = self._writer.create_warcinfo_record(None, fields)
        record.rec_headers.replace_header("WARC-Record-ID", self._id("warcinfo"))
        if self._date:
            record.rec_headers.replace_header("WARC-Date", self._date)
        self._writer.write_record(record)

    def response(
        self, url: str, status: int, reason: str, headers: Sequence[tuple[str, str]], body: bytes, cut: str = ""
    ) -> None:
        """Write one response; ``cut`` is WARC's reason for a truncated one: "length", "time" or "disconnect"."""
        line = f"{status} {_ascii(reason)}".strip()
        sent = [(_ascii(name), _ascii(value)) for name, value in headers]
        extra = {"WARC-Record-ID": self._id(url)}
        if self._date:
            extra["WARC-Date"] = self._date
        if cut:
            extra["WARC-Truncated"] = cut
        if self._plain is not None:
            self._plain.write(_plain_record(url, line, sent, body, extra))
            return
        from warcio.statusandheaders import StatusAndHeaders

        http = StatusAndHeaders(line, sent, protocol="HTTP/1.1")
        self._writer.write_record(
            self._writer.create_warc_record(
                url, "response", payload=io.BytesIO(body), http_headers=http, warc_headers_dict=extra
            )
        )

    def hop(self, hop: Hop) -> None:
        """Write one response as it was fetched."""
        self.response(hop.url, hop.status, hop.reason, hop.headers, hop.body, hop.cut)

    def _id(self, name: str) -> str:
        if not self._date:
            return f"<urn:uuid:{uuid.uuid4()}>"
        self._count += 1
        return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{self._date} {self._count} {name}')}>"


def _plain_record(url: str, line: str, headers: list[tuple[str, str]], body: bytes, extra: dict[str, str]) -> bytes:
    """A response record, byte for byte as warcio writes it (a test holds it to that), at a third of its time.

    For images of 2 kB that is 22 microseconds instead of 64, of the 600 that a fetch takes in all.
    """
    head = "".join([f"HTTP/1.1 {line}\r\n", *(f"{name}: {value}\r\n" for name, value in headers), "\r\n"]).encode()
    now = (
        {}
        if "WARC-Date" in extra
        else {"WARC-Date": f"{datetime.now(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"}
    )
    payload = hashlib.sha1(body, usedforsecurity=False)
    block = hashlib.sha1(head, usedforsecurity=False)
    block.update(body)
    fields = {
        **extra, "WARC-Type": "response", "WARC-Target-URI": url, **now,
        "WARC-Payload-Digest": f"sha1:{base64.b32encode(payload.digest()).decode()}",
        "WARC-Block-Digest": f"sha1:{base64.b32encode(block.digest()).decode()}",
        "Content-Type": "application/http; msgtype=response", "Content-Length": str(len(head) + len(body)),
    }  # fmt: skip
    first = "".join(["WARC/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in fields.items()), "\r\n"]).encode()
    return b"".join([first, head, body, b"\r\n\r\n"])


def _ascii(text: str) -> str:
    """A header's text as received, what is not ASCII in it percent-encoded."""
    return text if text.isascii() else quote(text.encode("utf-8", "surrogateescape"), safe=_PRINTABLE)


def is_warc(name: str) -> bool:
    """Whether a file's name says that it is a WARC."""
    return name.lower().endswith(SUFFIXES) and not is_wat(name)


def is_wat(name: str) -> bool:
    """Whether a file's name says that it is a WAT (``x.wat.gz``, Common Crawl's ``x.warc.wat.gz``)."""
    return name.lower().endswith(WAT_SUFFIXES)


def _iterate(file: Any, start: int) -> Iterator[Any]:
    from fastwarc.warc import ArchiveIterator

    file.seek(start)
    yield from ArchiveIterator(file, parse_http=False)


def _response(record: Any, max_bytes: int, faults: Faults) -> Response | None:
    from fastwarc.warc import WarcRecordType

    if record.record_type not in (WarcRecordType.response, WarcRecordType.resource):
        return None
    expected = int(record.content_length)
    raw = record.reader.read(min(expected, max_bytes + MAX_HEAD) + 1)
    fields: tuple[tuple[str, str], ...] = (("content-type", record.headers.get("Content-Type") or ""),)
    status = 200
    missing = len(raw) < expected
    if record.record_type == WarcRecordType.response:
        if not (fields[0][1] or "application/http").lower().startswith("application/http"):
            return None  # an answer of the domain name system, say
        try:
            head = read_head(raw, whole=True)
        except ValueError:
            head = None
        if head is None:
            faults.counts["http-unreadable"] += 1
            return None
        status, raw = head.status, raw[head.size :]
        fields = tuple((name.lower(), value) for name, value in head.fields)
    headers = _joined(fields)
    mark = record.headers.get("WARC-Truncated")
    if mark:
        headers["warc-truncated"] = mark
    body, whole = decode_body(raw[: max_bytes + 1], headers, max_bytes)
    url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    cut = missing or len(raw) > max_bytes or bool(mark) or not whole
    return Response(url, status, headers, body, cut, int(record.stream_pos), fields=fields)


def _joined(fields: tuple[tuple[str, str], ...]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in fields:
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _metadata(record: Any, max_bytes: int, faults: Faults) -> Response | None:
    from fastwarc.warc import WarcRecordType

    if record.record_type != WarcRecordType.metadata:
        return None
    expected = int(record.content_length)
    body = record.reader.read(min(expected, max_bytes))
    url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    return Response(url, 200, {}, body, len(body) < expected, int(record.stream_pos))


def _next_member(file: BinaryIO, start: int) -> int | None:
    """The offset of the next record (gzip member, zstd frame, or plain) that could begin at or after ``start``."""
    file.seek(0)
    head = file.read(4)
    magic = _GZIP_MAGIC if head.startswith(_GZIP_MAGIC) else _ZSTD_MAGIC if head == _ZSTD_MAGIC else _PLAIN_MAGIC
    skip = 4 if magic == _PLAIN_MAGIC else 0
    file.seek(start)
    at, tail = start, b""
    while block := file.read(1 << 20):
        window = tail + block
        found = window.find(magic)
        if found >= 0:
            return at - len(tail) + found + skip
        at += len(block)
        tail = window[1 - len(magic) :]
    return None


def _is_cut(fault: Exception) -> bool:
    return any(word in str(fault).lower() for word in ("eof", "unexpected end", "truncated", "incomplete"))
