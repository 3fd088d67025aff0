"""Image links of an HTML page, the way a browser would find them, one address an ``<img>``.

Addresses resolve against the first ``<base href>`` (itself resolved against the page's address). ``srcset`` is parsed
as the HTML standard says (commas may stand inside addresses) and its largest candidate taken. The sources of a
``<picture>`` are alternatives of its one image. Lazy-loading attributes go before a ``src`` that is only a placeholder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urldefrag, urljoin, urlsplit

_WHITESPACE = " \t\n\f\r"
_LAZY_SRCSET = ("data-srcset", "data-lazy-srcset")
_LAZY_SRC = ("data-src", "data-original", "data-lazy-src", "data-lazy")
_PLACEHOLDER = re.compile(
    r"(^|[/_.-])(spacer|blank|placeholder|transparent|pixel|1x1|loading)\.(gif|png|jpe?g|webp)$", re.I
)
_VECTOR = re.compile(r"\.svgz?$", re.I)
_DECODABLE = frozenset(("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"))

_OPT_OUT = frozenset(("noai", "noimageai", "noindex", "noimageindex", "noml", "none"))


@dataclass(frozen=True)
class ImageLink:
    """One ``<img>``: absolute http(s) address, alternative text, and what the page itself says against it."""

    url: str
    alt: str
    reason: str = ""  # "", "declared-tracker" or "vector"


@dataclass(frozen=True)
class Page:
    """What a page says: image links, ``<a>`` links (absolute), and its ``<meta name=robots>`` choices."""

    images: tuple[ImageLink, ...]
    anchors: tuple[str, ...]
    opt_out: bool
    nofollow: bool
    skipped: int  # <img> without a usable http(s) address: data:, blob:, empty


def parse_page(html: str, url: str, token: str = "vitrail") -> Page:
    """Read ``html``, the page at ``url``; robots meta elements count when named ``robots`` or ``token``."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(html)
    base = _base(tree, url)
    images: dict[str, ImageLink] = {}
    skipped = 0
    for node in tree.css("img"):
        link = _image(node, base)
        if link is None:
            skipped += 1
        elif link.url not in images:
            images[link.url] = link
    anchors = dict.fromkeys(
        target for node in tree.css("a[href]") if (target := resolve(base, node.attributes.get("href") or ""))
    )
    directives = {
        word
        for node in tree.css("meta[name]")
        if (node.attributes.get("name") or "").strip().lower() in ("robots", token.lower())
        for word in re.split(r"[\s,]+", (node.attributes.get("content") or "").lower())
    }
    reserved = any(
        (node.attributes.get("name") or "").strip().lower() == "tdm-reservation"
        and (node.attributes.get("content") or "").strip() == "1"
        for node in tree.css("meta[name]")
    )
    nofollow = bool(directives & {"nofollow", "none"})
    return Page(tuple(images.values()), tuple(anchors), reserved or bool(directives & _OPT_OUT), nofollow, skipped)


def header_opts_out(x_robots_tag: str, tdm_reservation: str, token: str = "vitrail") -> bool:
    """Whether response headers opt the response out; ``otherbot: noai`` speaks to another crawler only."""
    if tdm_reservation.strip() == "1":
        return True
    agent = ""
    for part in x_robots_tag.lower().split(","):
        head, colon, rest = part.partition(":")
        word = part.strip()
        if colon and head.strip() not in ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"):
            agent, word = head.strip(), rest.strip()
        if word in _OPT_OUT and agent in ("", token.lower()):
            return True
    return False


def resolve(base: str, address: str) -> str:
    """``address`` made absolute, without fragment; "" unless it is a usable http(s) address without credentials."""
    address = address.strip(_WHITESPACE).replace("\t", "").replace("\n", "").replace("\r", "")
    if not address:
        return ""
    try:
        address = address.replace(" ", "%20")
        # urljoin would take "http://" without a host for the base itself.
        whole = address[:8].lower().startswith(("http://", "https://"))
        absolute = urldefrag(address if whole else urljoin(base, address))[0]
        parts = urlsplit(absolute)
        host, _ = parts.hostname, parts.port
    except ValueError:  # malformed IPv6 host, port out of range
        return ""
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        return ""
    return parts._replace(netloc=parts.netloc.lower(), path=parts.path or "/").geturl()


def parse_srcset(text: str) -> list[tuple[str, str, float]]:
    """Candidates of a ``srcset`` as (address, "w" or "x", number), by the HTML standard's algorithm.

    Candidates with a descriptor that is not understood are left out, as the standard says; no descriptor is 1x.
    """
    found: list[tuple[str, str, float]] = []
    at = 0
    while True:
        while at < len(text) and text[at] in _WHITESPACE + ",":
            at += 1
        if at >= len(text):
            return found
        start = at
        while at < len(text) and text[at] not in _WHITESPACE:
            at += 1
        address, descriptors = text[start:at], ""
        if address.endswith(","):
            address = address.rstrip(",")
        else:
            start, depth = at, 0
            while at < len(text) and (text[at] != "," or depth):
                depth += (text[at] == "(") - (text[at] == ")" and depth > 0)
                at += 1
            descriptors = text[start:at]
        kind = _descriptor(descriptors.split())
        if kind is not None and address:
            found.append((address, *kind))


def _descriptor(words: list[str]) -> tuple[str, float] | None:
    words = [word for word in words if not re.fullmatch(r"[1-9]\d*h", word)]
    if not words:
        return ("x", 1.0)
    match = re.fullmatch(r"(\d+)(w)|(-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(x)", words[0])
    if len(words) > 1 or not match:
        return None
    number = float(match.group(1) or match.group(3))
    return (match.group(2) or match.group(4), number) if number >= 0 and number != float("inf") else None


def _largest(candidates: list[tuple[str, str, float]]) -> str:
    """The widest candidate, or without widths the densest; the first of equals."""
    widths = [c for c in candidates if c[1] == "w"] or candidates
    return max(widths, key=lambda c: c[2])[0] if widths else ""


def _base(tree: Any, url: str) -> str:
    node = tree.css_first("base[href]")
    href = (node.attributes.get("href") or "") if node is not None else ""
    return (resolve(url, href) or url) if href.strip(_WHITESPACE) else url


def _image(node: Any, base: str) -> ImageLink | None:
    attributes = node.attributes
    alt = (attributes.get("alt") or "").strip()
    for address in _addresses(node):
        url = resolve(base, address)
        if url:
            if _declared_tiny(attributes):
                return ImageLink(url, alt, "declared-tracker")
            return ImageLink(url, alt, "vector" if _VECTOR.search(urlsplit(url).path) else "")
    return None


def _addresses(node: Any) -> Iterator[str]:
    """Addresses to try for one ``<img>``, best first."""
    attributes = node.attributes
    src = (attributes.get("src") or "").strip(_WHITESPACE)
    plain = [] if not src or _is_placeholder(src) else [(src, "x", 1.0)]
    candidates = plain + parse_srcset(attributes.get("srcset") or "") + list(_picture(node))
    candidates = [c for c in candidates if not _is_placeholder(c[0])]
    lazy = [c for name in _LAZY_SRCSET for c in parse_srcset(attributes.get(name) or "")]
    lazy += [(value, "x", 1.0) for name in _LAZY_SRC if (value := (attributes.get(name) or "").strip(_WHITESPACE))]
    if plain:
        yield _largest(candidates)
        yield src
    yield _largest(lazy)
    yield _largest(candidates)
    yield src


def _picture(node: Any) -> Iterator[tuple[str, str, float]]:
    parent = node.parent
    if parent is None or parent.tag != "picture":
        return
    for source in parent.css("source"):
        kind = (source.attributes.get("type") or "image/jpeg").partition(";")[0].strip().lower()
        if kind in _DECODABLE:
            yield from parse_srcset(source.attributes.get("srcset") or source.attributes.get("data-srcset") or "")


def _is_placeholder(address: str) -> bool:
    return address[:5].lower() == "data:" or bool(_PLACEHOLDER.search(address.partition("?")[0]))


def _declared_tiny(attributes: dict[str, str | None]) -> bool:
    sides = [re.match(r"\s*(\d+)", attributes.get(name) or "") for name in ("width", "height")]
    return any(side is not None and int(side.group(1)) <= 1 for side in sides)
