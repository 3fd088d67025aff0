"""Chunked bodies (RFC 9112, 7.1) written anew in the one form that every parser takes.

Servers end the lines of sizes in a bare line feed, leave gaps around a size, or end the body without the last empty
line. Browsers accept this; strict parsers do not.
"""

from __future__ import annotations

import re

MAX_LINE = 16_384  # bytes of a size with its extension, or of one trailer
MAX_TRAILERS = 131_072  # bytes

_SIZE = re.compile(rb"[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?\r*", re.S)
_END = b"0\r\n\r\n"


class Chunks:
    """Reads the pieces of one body as they arrive; see the module."""

    def __init__(self) -> None:
        self.done = False  # the last chunk was seen, and its trailers
        self._rest = b""  # of a line that is not whole yet
        self._left = 0  # bytes of the chunk that are still to come
        self._within = False  # a chunk was begun, and the end of its line has not come
        self._trailers = -1  # bytes of trailers so far; -1 before the last chunk

    def feed(self, data: bytes) -> bytes:
        """What ``data`` adds, as whole chunks. After :attr:`done`, bytes that follow the body are dropped.

        Raises:
            ValueError: no chunked body.
        """
        data, self._rest = self._rest + data, b""
        found, at = bytearray(), 0
        while not self.done and at < len(data):
            if self._left:
                part = data[at : at + self._left]
                found += b"%x\r\n%b\r\n" % (len(part), part)
                self._left -= len(part)
                at += len(part)
                continue
            end = data.find(b"\n", at)
            if (end if end >= 0 else len(data)) - at > MAX_LINE:
                raise ValueError(f"a line of more than {MAX_LINE} bytes among chunks")
            if end < 0:
                self._rest = data[at:]
                break
            found += self._line(data[at:end])
            at = end + 1
        return bytes(found)

    def _line(self, line: bytes) -> bytes:
        """Take one line: the end of a chunk, a size, or a trailer. Trailers are not kept."""
        if self._trailers >= 0:
            self._trailers += len(line) + 1
            if self._trailers > MAX_TRAILERS:
                raise ValueError(f"trailers of more than {MAX_TRAILERS} bytes")
            if not line.strip(b"\r"):
                self.done = True
                return _END
            return b""
        if self._within:
            if line.strip(b"\r"):
                raise ValueError("a chunk that is longer than its size says")
            self._within = False
            return b""
        size = _SIZE.fullmatch(line)
        if size is None:
            raise ValueError("a chunk without a size")
        self._left = int(size.group(1), 16)
        if self._left:
            self._within = True
        else:
            self._trailers = 0
        return b""
