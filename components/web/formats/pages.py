"""Pages read with a limit on what one may cost.

HTML can be written so that a parser by the standard takes hours over a few megabytes (elements nested without end, a
tag of a million attributes), and no measure of the text says which. So all but short pages are parsed in a process of
their own, whose time and memory are limited (:mod:`components.images.sandbox`).
"""

from __future__ import annotations

import json
from typing import Any

from components.images.decode import DecodeError
from components.images.sandbox import SandboxParams, kept
from components.web.formats.links import ImageLink, Page, parse_page

EASY = 50_000  # characters; the worst page of this length that was found takes 0.5 s


def read_page(html: str, url: str, token: str, params: SandboxParams, **options: bool) -> Page | None:
    """:func:`components.web.formats.links.parse_page`, or None for a page that costs more than ``params`` allow."""
    if len(html) <= EASY:
        return parse_page(html, url, token, **options)
    head = json.dumps([url, token, options])
    try:
        answer: dict[str, Any] = json.loads(
            kept(_parse, params, _prepare)(f"{head}\n{html}".encode("utf-8", "replace"))
        )
    except DecodeError:  # too slow, too much memory, or the parser crashed
        return None
    images = tuple(ImageLink(*link) for link in answer.pop("images"))
    return Page(images=images, anchors=tuple(answer.pop("anchors")), **answer)


def _prepare() -> None:
    parse_page("", "")


def _parse(request: bytes) -> bytes:
    head, _, html = request.decode().partition("\n")
    url, token, options = json.loads(head)
    page = parse_page(html, url, token, **options)
    images = [(link.url, link.alt, link.reason) for link in page.images]
    return json.dumps(vars(page) | {"images": images}).encode()
