"""WAT records: Common Crawl's JSON extract of a page's links. A tenth of the WARC's size, and a part of its links.

The extractor kept ``<img src>`` and its ``alt`` (path ``IMG@/src``), ``<base>``, meta elements and HTTP headers. What
it did not keep cannot be had from here: ``srcset``, ``<picture>`` and lazy attributes need the WARC itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from components.web.formats.links import ImageLink, Page, is_vector
from components.web.formats.opt_out import headers_said, metas_said
from components.web.formats.urls import resolve

_MAX_ALT = 2_000  # characters


def parse_wat(body: bytes, token: str) -> tuple[str, Page] | None:
    """The page that a WAT record tells of: its address and links; None for another record.

    Raises:
        ValueError: ``body`` is not the JSON of a WAT record.
    """
    try:
        content = json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    envelope = _at(content, "Envelope")
    if not envelope:
        raise ValueError("no Envelope")
    headers = _at(envelope, "WARC-Header-Metadata")
    answer = _at(envelope, "Payload-Metadata", "HTTP-Response-Metadata")
    html = _at(answer, "HTML-Metadata")
    if headers.get("WARC-Type") != "response" or not html:
        return None
    if str(_at(answer, "Response-Message").get("Status", "200")) != "200":
        return None
    url = resolve("", str(headers.get("WARC-Target-URI") or ""))
    if not url:
        return None
    head = _at(html, "Head")
    base = resolve(url, str(head.get("Base") or "")) or url
    images: dict[str, ImageLink] = {}
    skipped = 0
    for link in _dicts(html.get("Links")):
        if link.get("path") != "IMG@/src":
            continue
        address = resolve(base, str(link.get("url") or ""))
        if not address:
            skipped += 1
        elif address not in images:
            alt = str(link.get("alt") or "").strip()[:_MAX_ALT]
            images[address] = ImageLink(address, alt, "vector" if is_vector(address) else "")
    metas = [(str(meta.get("name") or ""), str(meta.get("content") or "")) for meta in _dicts(head.get("Metas"))]
    sent = {name.lower(): _values(value) for name, value in _at(answer, "Headers").items()}
    said = metas_said(metas, token) or headers_said(
        sent.get("x-robots-tag", ()), sent.get("tdm-reservation", ()), token
    )
    licence = next(
        (found for link in _dicts(head.get("Link")) if link.get("rel") == "license"
         if (found := resolve(base, str(link.get("url") or "")))), "",
    )  # fmt: skip
    return url, Page(tuple(images.values()), (), bool(said), False, skipped, licence, said=said)


def _at(content: Any, *names: str) -> dict[str, Any]:
    """The object at the path ``names``; an empty one where there is none."""
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def _dicts(content: Any) -> Iterator[dict[str, Any]]:
    return (item for item in content if isinstance(item, dict)) if isinstance(content, list) else iter(())


def _values(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]
