"""What an answer is, as browsers decide: the last Content-Type that is one, else its first bytes (MIME Sniffing)."""

from __future__ import annotations

import re
from collections.abc import Iterable

PAGE_TYPES = ("text/html", "application/xhtml+xml")

_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+/[!#$%&'*+.^_`|~0-9a-z-]+")
_UNKNOWN = ("*/*", "unknown/unknown", "application/unknown")
_TAGS = rb"!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p"
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?[\t\n\f\r ]*<(?:!--|(?:" + _TAGS + rb")[ >\t\n\f\r/])", re.I)


def content_type_of(values: Iterable[str], body: bytes) -> str:
    """The type of an answer with these Content-Type headers, lower case and without parameters; "" when unknown."""
    found = ""
    for value in values:
        for one in value.split(","):
            essence = one.partition(";")[0].strip().lower()
            if _TYPE.fullmatch(essence) and essence not in _UNKNOWN:
                found = essence
    return found or ("text/html" if _HTML.match(body[:1024]) else "")
