"""Image links of an HTML page, the way a browser would find them, one address an ``<img>``.

Addresses resolve against the first ``<base href>`` (itself resolved against the page's address). ``srcset`` is parsed
as the HTML standard says (addresses may contain commas) and its largest candidate taken. The sources of a
``<picture>`` are alternatives of its one image. Lazy-loading attributes go before a ``src`` that is only a placeholder.

A page cannot cost more than its length: tags beyond :data:`MAX_TAGS`, and addresses, alternative texts and ``srcset``
longer than any honest page writes, are cut or left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from components.web.formats.opt_out import meta_words, metas_said
from components.web.formats.urls import resolve

_WHITESPACE = " \t\n\f\r"
_LAZY_SRCSET = ("data-srcset", "data-lazy-srcset")
_LAZY_SRC = ("data-src", "data-original", "data-lazy-src", "data-lazy")
_PLACEHOLDER = re.compile(
    r"(^|[/_.-])(spacer|blank|placeholder|transparent|pixel|1x1|loading)\.(gif|png|jpe?g|webp)$", re.I
)
_VECTOR = re.compile(r"\.svgz?$", re.I)
_BETTER = frozenset(("srcset", *_LAZY_SRCSET, *_LAZY_SRC))  # attributes that may name a better address than src
_NUMBER = re.compile(r"\s*(\d+)")
_DECODABLE = frozenset(("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"))

MAX_TAGS = 50_000  # img, source and a tags of one page that are read; later ones are not
_MAX_SRCSET = 65_536  # characters
_MAX_ALT = 2_000  # characters
_TAG = re.compile(r"<(?:img|source|a)[\s/>]", re.I)
_WANTED = "base[href],meta[name],img," + ",".join(f"{tag}[rel~=license][href]" for tag in ("a", "area", "link"))


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
    licence: str = ""  # address or name of the licence that the page states (rel=license, meta); "" when it states none
    cut: bool = False  # the page has more than MAX_TAGS tags
    said: str = ""  # the words with which it opts out; "" when it does not


def parse_page(html: str, url: str, token: str = "vitrail", anchors: bool = True) -> Page:
    """Read ``html``, the page at ``url``; robots meta elements count when named ``robots`` or ``token``.

    Without ``anchors``, none are looked for: a page has many times more of them than images, and a scan needs none.
    """
    from selectolax.lexbor import LexborHTMLParser

    html, cut = _bounded(html)
    tree = LexborHTMLParser(html)
    found: dict[str, list[Any]] = {"base": [], "meta": [], "img": []}
    licences: list[Any] = []
    # One query for all, for each walks the whole tree, a quarter of parsing. No element is of two kinds.
    for node in tree.css(_WANTED):
        found.get(str(node.tag), licences).append(node)
    base = _base(found["base"], url)
    images: dict[str, ImageLink] = {}
    sources: dict[int, list[Candidate]] = {}
    skipped = 0
    for node in found["img"]:
        link = _image(node, base, sources)
        if link is None:
            skipped += 1
        elif link.url not in images:
            images[link.url] = link
    targets = (resolve(base, node.attributes.get("href") or "") for node in (tree.css("a[href]") if anchors else ()))
    following = tuple(dict.fromkeys(target for target in targets if target))
    metas = [(node.attributes.get("name") or "", node.attributes.get("content") or "") for node in found["meta"]]
    nofollow = bool(meta_words(metas, token) & {"nofollow", "none"})
    said = metas_said(metas, token)
    licence = _licence(licences, base, metas)
    return Page(tuple(images.values()), following, bool(said), nofollow, skipped, licence, cut, said)


Candidate = tuple[str, str, float]  # address, "w" or "x", number


def parse_srcset(text: str) -> list[Candidate]:
    """Candidates of a ``srcset`` as (address, "w" or "x", number), by the HTML standard's algorithm.

    Candidates with a descriptor that is not understood are left out, as the standard says; no descriptor is 1x.
    """
    text = text[:_MAX_SRCSET]
    found: list[Candidate] = []
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


def _largest(candidates: list[Candidate]) -> str:
    """The widest candidate, or without widths the densest; the first of equals."""
    widths = [c for c in candidates if c[1] == "w"] or candidates
    return max(widths, key=lambda c: c[2])[0] if widths else ""


def _base(nodes: list[Any], url: str) -> str:
    href = (nodes[0].attributes.get("href") or "") if nodes else ""
    return (resolve(url, href) or url) if href.strip(_WHITESPACE) else url


def _bounded(html: str) -> tuple[str, bool]:
    """``html`` up to its first :data:`MAX_TAGS` tags that could name something, and whether that cut it."""
    if len(html) <= 3 * MAX_TAGS:  # "<a>": no room for more
        return html, False
    for number, match in enumerate(_TAG.finditer(html)):
        if number == MAX_TAGS:
            return html[: match.start()], True
    return html, False


def _licence(nodes: list[Any], base: str, metas: list[tuple[str, str]]) -> str:
    """What the page says its content is licensed under: ``rel=license``, else a meta element that names one."""
    for node in nodes:
        if found := resolve(base, node.attributes.get("href") or ""):
            return found
    names = ("license", "licence", "dcterms.license", "dc.rights", "dcterms.rights")
    return next((text.strip()[:_MAX_ALT] for name, text in metas if name.strip().lower() in names), "")


def is_vector(url: str) -> bool:
    """Whether an address names an SVG drawing."""
    return bool(_VECTOR.search(url.partition("#")[0].partition("?")[0]))


def _image(node: Any, base: str, sources: dict[int, list[Candidate]]) -> ImageLink | None:
    attributes = node.attributes
    alt = (attributes.get("alt") or "").strip()[:_MAX_ALT]
    for address in _addresses(node, attributes, sources):
        url = resolve(base, address)
        if url:
            if _declared_tiny(attributes):
                return ImageLink(url, alt, "declared-tracker")
            return ImageLink(url, alt, "vector" if is_vector(url) else "")
    return None


def _addresses(node: Any, attributes: dict[str, str | None], sources: dict[int, list[Candidate]]) -> Iterator[str]:
    """Addresses to try for one ``<img>``, best first; ``sources`` remembers those of each ``<picture>``."""
    src = (attributes.get("src") or "").strip(_WHITESPACE)
    pictured = _picture(node, sources)
    if not pictured and _BETTER.isdisjoint(attributes):
        yield src  # as most are
        return
    plain = [] if not src or _is_placeholder(src) else [(src, "x", 1.0)]
    candidates = plain + parse_srcset(attributes.get("srcset") or "") + pictured
    candidates = [c for c in candidates if not _is_placeholder(c[0])]
    lazy = [c for name in _LAZY_SRCSET for c in parse_srcset(attributes.get(name) or "")]
    lazy += [(value, "x", 1.0) for name in _LAZY_SRC if (value := (attributes.get(name) or "").strip(_WHITESPACE))]
    if plain:
        yield _largest(candidates)
        yield src
    yield _largest(lazy)
    yield _largest(candidates)
    yield src


def _picture(node: Any, sources: dict[int, list[Candidate]]) -> list[Candidate]:
    parent = node.parent
    if parent is None or parent.tag != "picture":
        return []
    if parent.mem_id not in sources:
        found: list[Candidate] = []
        for source in parent.css("source"):
            kind = (source.attributes.get("type") or "image/jpeg").partition(";")[0].strip().lower()
            if kind in _DECODABLE:
                found += parse_srcset(source.attributes.get("srcset") or source.attributes.get("data-srcset") or "")
        # Only one of each kind can win; all of them would be gone through again for each image of one picture.
        kinds = ([c for c in found if c[1] == kind and not _is_placeholder(c[0])] for kind in "wx")
        sources[parent.mem_id] = [max(candidates, key=lambda c: c[2]) for candidates in kinds if candidates]
    return sources[parent.mem_id]


def _is_placeholder(address: str) -> bool:
    return address[:5].lower() == "data:" or bool(_PLACEHOLDER.search(address.partition("?")[0]))


def _declared_tiny(attributes: dict[str, str | None]) -> bool:
    sides = [_NUMBER.match(attributes.get(name) or "") for name in ("width", "height")]
    return any(side is not None and int(side.group(1)) <= 1 for side in sides)
