"""aiohttp's connection with a tidied head before its parser: what browsers accept and the parser refuses.

The head of each answer is read by :mod:`components.web.formats.http_head` and handed on in the one form that every
parser takes; so are chunked bodies (:mod:`components.crawl.chunks`). Other bodies pass as they are. The bytes of a head
are bounded by :data:`components.web.formats.http_head.MAX_HEAD`.
"""

from __future__ import annotations

import re
from typing import Any

from aiohttp.client_proto import ResponseHandler

from components.crawl.chunks import Chunks
from components.web.formats.http_head import MAX_HEAD, Head, begins_well, read_head

_MAX_INTERIM = 20  # answers of status 1xx before the one that counts
_EMPTY_LINE = re.compile(rb"\n\r*\n")
_REFUSED = b"refused\r\n\r\n"  # makes the parser end the connection
_NO_SIZE = b"refused\r\n"  # in the place of a chunk's size
_OURS = ("content-length", "transfer-encoding", "sec-websocket-key1")


class LenientHandler(ResponseHandler):
    """See the module."""

    _head: bytearray | None = None  # what has come of the head; None while a body passes
    _interim = 0
    _chunks: Chunks | None = None  # reads the body that passes, if it is chunked

    def set_response_params(self, **settings: Any) -> None:
        """A request was sent: a head comes next."""
        self._head, self._interim, self._chunks = bytearray(), 0, None
        super().set_response_params(**settings)

    def data_received(self, data: bytes) -> None:
        """Hold ``data`` back until the head is whole."""
        if self._head is None and self._chunks is not None and data:
            data = self._anew(data)
            if not data:
                return
        if self._head is None or self._parser is None or not data:
            super().data_received(data)
            return
        seen = len(self._head)
        self._head += data
        if self._head[0] in b"\r\n":
            self._head, seen = self._head.lstrip(b"\r\n"), 0
        try:
            passed = self._tidied(seen)
        except ValueError:
            self._head, passed = None, _REFUSED
        if passed:
            super().data_received(passed)

    def _tidied(self, seen: int) -> bytes:
        """The tidy head and what came of the body; nothing while the head is not whole.

        Raises:
            ValueError: no head that is accepted.
        """
        while self._head:
            if not begins_well(bytes(self._head[:5])):
                raise ValueError("no HTTP response")
            # Only what is new is searched, so that a head that drips in costs its length.
            if len(self._head) < MAX_HEAD and not _EMPTY_LINE.search(self._head, max(0, seen - 64)):
                return b""
            data = bytes(self._head)
            head = read_head(data)
            if head is None:
                return b""
            if not 100 <= head.status < 200:
                self._head = None
                body = data[head.size :]
                if "chunked" in _listed(head, "transfer-encoding"):
                    self._chunks = Chunks()
                    body = self._anew(body)
                return tidy(head) + body
            self._interim += 1
            if head.status == 101 or self._interim > _MAX_INTERIM:
                raise ValueError("an answer that nobody asked for")
            self._head, seen = bytearray(data[head.size :]).lstrip(b"\r\n"), 0
        return b""

    def _anew(self, data: bytes) -> bytes:
        """``data`` of a chunked body as the parser takes it; what is no chunk becomes a line that it refuses."""
        assert self._chunks is not None
        try:
            return self._chunks.feed(data)
        except ValueError:
            self._chunks = None
            return _NO_SIZE


def tidy(head: Head) -> bytes:
    """``head`` as every parser takes it, with one length at the most.

    Raises:
        ValueError: two lengths that differ.
    """
    lines = [f"HTTP/1.{int(head.keeps_alive)} {head.status} {head.reason}".rstrip()]
    lines += [f"{name}: {value}" for name, value in head.fields if name.lower() not in _OURS]
    codings = _listed(head, "transfer-encoding")
    # What is no number says nothing, as in browsers: the body then lasts until the connection ends.
    lengths = {length for length in _listed(head, "content-length") if length.isascii() and length.isdigit()}
    if "chunked" in codings:
        lines.append("Transfer-Encoding: chunked")  # it goes before a length (RFC 9112, 6.3)
    elif len(lengths) > 1:
        raise ValueError("lengths that differ")
    else:
        lines += [f"Content-Length: {length}" for length in lengths]
    return "\r\n".join([*lines, "", ""]).encode()


def _listed(head: Head, name: str) -> list[str]:
    values = [value for known, value in head.fields if known.lower() == name]
    return [item.strip().lower() for value in values for item in value.split(",") if item.strip()]
