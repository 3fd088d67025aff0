"""Image links of an HTML page, the way a browser would find them, one address an ``<img>``.

Addresses resolve against the first ``<base href>`` (itself resolved against the page's address). ``srcset`` is parsed
as the HTML standard says (commas may stand inside addresses) and its largest candidate taken. The sources of a
``<picture>`` are alternatives of its one image. Lazy-loading attributes go before a ``src`` that is only a placeholder.

A page cannot cost more than its length: tags beyond :data:`MAX_TAGS`, and addresses, alternative texts and ``srcset``
longer than any honest page writes, are cut or left out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

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

MAX_TAGS = 50_000  # img, source and a tags of one page that are read; what stands after them is not
_MAX_ADDRESS = 8_192  # characters; servers refuse longer ones
_MAX_SRCSET = 65_536  # characters
_MAX_ALT = 2_000  # characters
_PORTS = {"http": ":80", "https": ":443"}
_TAG = re.compile(r"<(?:img|source|a)[\s/>]", re.I)
_SURROGATES = re.compile("[\ud800-\udfff]")
_WANTED = "base[href],meta[name],img," + ",".join(f"{tag}[rel~=license][href]" for tag in ("a", "area", "link"))
# Addresses that resolving leaves as they are, or only puts behind a directory: no dots, colons or gaps to see to.
_SEGMENT = r"[\w!$&'()*+,=@~%-][\w!$&'()*+,=@~%.-]*"
_PATH = rf"(?:{_SEGMENT}/)*(?:{_SEGMENT})?(?:\?[!-\"$-~]+)?"
_NORMAL = re.compile(rf"(https?://[a-z0-9](?:[a-z0-9-]|\.(?=[a-z0-9]))*)/{_PATH}", re.A)
_PLAIN = re.compile(rf"/?(?:{_SEGMENT}/)*{_SEGMENT}/?(?:\?[!-\"$-~]+)?", re.A)
_RELATIVE = re.compile(r"(?:/(?!/)|[\w.%~-])[^:\x00-\x20]*", re.A)  # to a folder; not to the page itself, as "?x" is
_ASCII = "".join(chr(code) for code in range(128))
_NO_HOST = re.compile(
    r"[\x00-\x20\x7f\"#%/<>?@\\^`{|}]"
)  # URL standard: forbidden in a host (brackets: urlsplit checks)

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
    nofollow = bool(_directives(metas, token) & {"nofollow", "none"})
    said = metas_said(metas, token)
    licence = _licence(licences, base, metas)
    return Page(tuple(images.values()), following, bool(said), nofollow, skipped, licence, cut, said)


def metas_opt_out(metas: list[tuple[str, str]], token: str = "vitrail") -> bool:
    """Whether a page's meta elements, as (name, content), opt its images out."""
    return bool(metas_said(metas, token))


def metas_said(metas: list[tuple[str, str]], token: str = "vitrail") -> str:
    """The words with which a page's meta elements opt out, such as ``meta robots noai``; "" when they do not."""
    if any(name.strip().lower() == "tdm-reservation" and text.strip() == "1" for name, text in metas):
        return "meta tdm-reservation 1"
    words = sorted(_directives(metas, token) & _OPT_OUT)
    return f"meta robots {', '.join(words)}" if words else ""


def _directives(metas: list[tuple[str, str]], token: str) -> set[str]:
    ours = ("robots", token.lower())
    return {
        word for name, text in metas if name.strip().lower() in ours for word in text.lower().replace(",", " ").split()
    }


def header_opts_out(x_robots_tag: str, tdm_reservation: str, token: str = "vitrail") -> bool:
    """Whether response headers opt the response out; ``otherbot: noai`` speaks to another crawler only."""
    return bool(headers_said(x_robots_tag, tdm_reservation, token))


def headers_said(x_robots_tag: str, tdm_reservation: str, token: str = "vitrail") -> str:
    """The words with which response headers opt out, such as ``X-Robots-Tag noai``; "" when they do not."""
    if tdm_reservation.strip() == "1":
        return "TDM-Reservation 1"
    agent = ""
    for part in x_robots_tag.lower().split(","):
        head, colon, rest = part.partition(":")
        word = part.strip()
        if colon and head.strip() not in ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"):
            agent, word = head.strip(), rest.strip()
        if word in _OPT_OUT and agent in ("", token.lower()):
            return f"X-Robots-Tag {word}"
    return ""


def resolve(base: str, address: str) -> str:
    """``address`` made absolute and normal; "" unless it is a usable http(s) address without credentials.

    Normal: no fragment, host lower case and in ASCII, no default port, no dot segments, non-ASCII characters
    percent-encoded as UTF-8. So one image has one address, however pages spell it.
    """
    if len(address) > _MAX_ADDRESS:
        return _resolved(base, address)
    if _NORMAL.fullmatch(address):
        return address
    place = _place(base)
    if place is None or not _RELATIVE.fullmatch(address):
        return _resolved(base, address)
    if _PLAIN.fullmatch(address):
        return place[address[0] != "/"] + address
    return _from_folder(place[1], address)  # pages of one folder name the same images


@functools.lru_cache(maxsize=1024)  # times _MAX_ADDRESS: 16 MB at the most
def _from_folder(folder: str, address: str) -> str:
    return _resolved(folder, address)


@functools.lru_cache(maxsize=256)
def _place(base: str) -> tuple[str, str] | None:
    """``scheme://host`` and the directory of a normal page address, to which :data:`_PLAIN` ones are just appended."""
    address = base.partition("?")[0]
    found = _NORMAL.fullmatch(address)
    return (found.group(1), address[: address.rindex("/") + 1]) if found else None


def _resolved(base: str, address: str) -> str:
    """:func:`resolve`, by every rule; what it does not change need not come here."""
    address = address[: _MAX_ADDRESS + 1].strip(_WHITESPACE).replace("\t", "").replace("\n", "").replace("\r", "")
    if not address or len(address) > _MAX_ADDRESS:
        return ""
    try:
        address = address.replace(" ", "%20")
        # urljoin would take "http://" without a host for the base itself.
        whole = address[:8].lower().startswith(("http://", "https://"))
        absolute = address if whole else urljoin(base, address)
        parts = urlsplit(absolute.partition("#")[0])
        host, _ = parts.hostname, parts.port
        if parts.scheme not in ("http", "https") or not host or parts.username is not None:
            return ""
        netloc = parts.netloc.lower().removesuffix(_PORTS[parts.scheme]).removesuffix(":")
        if not netloc.isascii():
            netloc = netloc.encode("idna").decode("ascii").removesuffix(":")
        if _NO_HOST.search(netloc):  # mapping a name to ASCII can bring such characters in
            return ""
        path = urljoin("http://h/", parts.path).removeprefix("http://h") if "/." in parts.path else parts.path
        found = f"{parts.scheme}://{netloc}{path or '/'}" + (f"?{parts.query}" if parts.query else "")
    except ValueError:  # malformed IPv6 host, port out of range, a host name that is none
        return ""
    return found if found.isascii() else quote(_SURROGATES.sub("\ufffd", found), safe=_ASCII)


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
