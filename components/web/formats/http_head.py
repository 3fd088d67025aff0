"""The head of an HTTP response, read as browsers read it, within limits.

Lines may end in CR LF, LF, or CR CR LF; the head ends at the first empty one. Lines that are no header are left out,
those that begin with a gap go on with the one before. The same reader serves WARC records and live answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HEAD = 131_072  # bytes; servers send some hundreds, and seldom ten thousand
MAX_FIELDS = 1_000  # headers; the rest is not kept

_END = re.compile(rb"\r*\n\r*\n")  # of the head; a first line that is empty has been taken off
_LINE = re.compile(rb"\r*\n|\r(?!\n|\r)")
_STATUS = re.compile(rb"(?:HTTP/(\d+)(?:\.(\d+))?|ICY)[ \t]+(\d{3})(?!\d)[ \t]*([^\r\n]*)", re.I)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class Head:
    """Status, reason and headers as sent (the name as written, the value trimmed), and where the body begins."""

    status: int
    reason: str
    fields: tuple[tuple[str, str], ...]
    size: int  # bytes, with what precedes it and the empty line
    keeps_alive: bool = False  # HTTP/1.1 and later


def read_head(data: bytes, whole: bool = False) -> Head | None:
    """The head that ``data`` begins with; None when its end is not there yet.

    With ``whole`` nothing follows ``data``: then its end ends the head, too.

    Raises:
        ValueError: no head of an HTTP response, or one of more than :data:`MAX_HEAD` bytes.
    """
    start = len(data) - len(data.lstrip(b"\r\n"))
    found = _END.search(data, start, MAX_HEAD)
    if found is None:
        if len(data) >= MAX_HEAD:
            raise ValueError(f"a head of more than {MAX_HEAD} bytes")
        if not begins_well(data[start : start + 5]):
            raise ValueError("no HTTP response")
        if not whole:
            return None
    end, size = (found.start(), found.end()) if found else (len(data), len(data))
    status = _STATUS.match(data, start, end)
    if status is None:
        raise ValueError("no HTTP response")
    fields: list[tuple[str, str]] = []
    for line in _LINE.split(data[status.end() : end])[1:]:
        if line[:1] in (b" ", b"\t"):
            if fields:
                fields[-1] = (fields[-1][0], f"{fields[-1][1]} {_text(line)}".strip())
            continue
        name, colon, value = line.partition(b":")
        known = _NAME.fullmatch(name.strip(b" \t").decode("latin-1"))
        if colon and known and len(fields) < MAX_FIELDS:
            fields.append((known.group(), _text(value)))
    version = (int(status.group(1) or 1), int(status.group(2) or 0)) if status.group(1) else (1, 0)
    return Head(int(status.group(3)), _text(status.group(4)), tuple(fields), size, version >= (1, 1))


def begins_well(first: bytes) -> bool:
    """Whether ``first``, up to five bytes, may begin an HTTP response."""
    first = first.upper()
    return b"HTTP/".startswith(first) or b"ICY ".startswith(first[:4])


def _text(value: bytes) -> str:
    """A value as text: UTF-8, else Latin-1; control characters, which no value may hold, are gaps."""
    value = value.strip(b" \t\r\n")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return text if text.isprintable() else "".join(c if c >= " " and c != "\x7f" else " " for c in text)
