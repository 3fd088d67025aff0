"""Transfer and content codings of HTTP taken off, within a bound on what comes out."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping

from components.images.decode import HEAD_BYTES, looks_like_image

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = re.compile(rb"[0-9a-fA-F]+[ \t]*(;[^\r\n]*)?\r?\n")
_READERS = {"br": "BrotliReader", "zstd": "ZstdReader"}  # FastWARC's
_MAX_CODINGS = 3  # one over the other


def decode_body(raw: bytes, headers: Mapping[str, str], max_bytes: int) -> tuple[bytes, bool]:
    """``raw`` without transfer and content coding, and whether all of it came out within ``max_bytes``.

    ``headers``: by lower-case name, repeated ones joined with ", ".
    """
    if "chunked" in headers.get("transfer-encoding", "").lower() and _CHUNK.match(raw):
        from fastwarc.stream_io import ChunkedReader

        try:
            raw = ChunkedReader(io.BytesIO(raw)).read(max_bytes + 1)
        except (OSError, ValueError):
            return b"", False
    codings = [name.strip().lower() for name in headers.get("content-encoding", "").split(",")]
    codings = [name for name in codings if name not in ("", "identity")]
    if len(codings) > _MAX_CODINGS:
        return b"", False
    body, whole = raw, True
    for coding in reversed(codings):  # they are listed in the order in which they were applied
        if body:
            body, all_of_it = _decoded(body, coding, max_bytes)
            whole = whole and all_of_it
    return body[:max_bytes], whole and len(body) <= max_bytes


def _decoded(raw: bytes, coding: str, max_bytes: int) -> tuple[bytes, bool]:
    """``raw`` without ``coding``, one byte more than ``max_bytes`` at most, and whether its end was reached."""
    if coding in ("gzip", "x-gzip", "deflate"):
        # 32 + 15: gzip or zlib by its header; servers that say deflate may send it bare.
        for window in (47, -15):
            try:
                return _inflated(raw, window, max_bytes)
            except zlib.error:
                continue
        return (raw, True) if raw[:2] != _GZIP_MAGIC else (b"", False)
    if coding in _READERS:
        from fastwarc import stream_io

        reader = getattr(stream_io, _READERS[coding])(io.BytesIO(raw))
        decoded = bytearray()
        try:
            while len(decoded) <= max_bytes and (block := reader.read(max_bytes + 1 - len(decoded))):
                decoded += block
        except (OSError, ValueError):
            # Servers name a coding and send none: an image then shows itself.
            return (raw, True) if looks_like_image(raw[:HEAD_BYTES]) else (b"", False)
        return bytes(decoded), True
    return raw, True


def _inflated(raw: bytes, window: int, max_bytes: int) -> tuple[bytes, bool]:
    """``raw`` inflated, member after member as gzip allows."""
    found, rest = bytearray(), raw
    while True:
        inflater = zlib.decompressobj(window)
        try:
            found += inflater.decompress(rest, max_bytes + 1 - len(found))
        except zlib.error:
            if not found:
                raise
            return bytes(found), False
        rest = inflater.unused_data
        if not inflater.eof or len(found) > max_bytes or not rest.startswith(_GZIP_MAGIC):
            return bytes(found), inflater.eof
