"""A page's bytes as text, in the encoding that a browser would take (WHATWG's Encoding Standard, HTML's sniffing)."""

from __future__ import annotations

import codecs
import re

import webencodings

from components.web.formats.warc import Response

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_SNIFFED = 4096  # bytes; the standard asks for 1024, browsers look further
_META = re.compile(rb"<meta[\s/][^>]{0,1000}>", re.I)
_COMMENT = re.compile(rb"<!--.*?-->", re.S)
_CHARSET = re.compile(rb"charset\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s;\"'>]+))", re.I)
_IN_HEADER = re.compile(r"charset\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s;,\"']+))", re.I)
# Labels of encodings that the standard maps to no text at all, for they can hide markup.
_REPLACED = frozenset(("csiso2022kr", "hz-gb-2312", "iso-2022-cn", "iso-2022-cn-ext", "iso-2022-kr", "replacement"))
# gb18030 holds all of gbk and is what the standard decodes it by; a page in "x-user-defined" is read as the other.
_CODECS = {"gbk": "gb18030", "x-user-defined": "windows-1252"}


def decode_text(response: Response) -> str:
    """The page as text: byte order mark, then HTTP header, then meta element, then UTF-8, else windows-1252.

    Undecodable bytes become U+FFFD: a page in a wrong encoding still has links.
    """
    body = response.body
    for mark, name in _MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, "replace")
    for value in reversed(response.values("content-type") or [response.headers.get("content-type", "")]):
        if (found := _IN_HEADER.search(value)) and (codec := codec_of(next(filter(None, found.groups()), ""))):
            return body.decode(codec, "replace")
    for meta in _META.findall(_COMMENT.sub(b"", body[:_SNIFFED])):
        if (found_ := _CHARSET.search(meta)) and (
            codec := codec_of(next(filter(None, found_.groups()), b"").decode("latin-1"))
        ):
            # A page whose markup could be read so far is not in UTF-16, whatever it says.
            return body.decode("utf-8" if codec.startswith("utf-16") else codec, "replace")
    if utf16 := _bare_utf16(body):
        return body.decode(utf16, "replace")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        cut = body[:-4].decode("utf-8", "ignore") if response.cut else None
        if cut is not None and len(cut.encode()) >= len(body) - 8:  # cut inside a character
            return body.decode("utf-8", "replace")
        return body.decode("windows-1252", "replace")


def codec_of(label: str) -> str:
    """Python's codec for an encoding's label as pages write it; "" for one that browsers do not know."""
    label = label.strip("\t\n\f\r ").lower()
    if label in _REPLACED:
        return "ascii"  # markup survives as far as it is ASCII
    known = webencodings.lookup(label)
    if known is None:
        return ""
    return _CODECS.get(known.name) or str(known.codec_info.name)


def _bare_utf16(body: bytes) -> str:
    """UTF-16 without a mark, by the zero bytes of its first characters."""
    head = body[:64]
    if len(head) >= 8 and not any(head[1::2]) and all(head[::2]):
        return "utf-16-le"
    return "utf-16-be" if len(head) >= 8 and not any(head[::2]) and all(head[1::2]) else ""
