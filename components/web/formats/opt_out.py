"""What pages and answers say against the use of their images: robots meta elements, X-Robots-Tag, TDM-Reservation.

``X-Robots-Tag: otherbot: noai`` speaks to another crawler, in that header alone. Values of other directives (a date
with commas, a number) are not words of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

OPT_OUT = frozenset(("noai", "noimageai", "noindex", "noimageindex", "noml", "none"))

_VALUED = frozenset(("max-snippet", "max-image-preview", "max-video-preview"))  # one word follows
_EVERYONE = frozenset(("", "*", "robots"))
_TOKEN = re.compile(r"[^\s,;:]+(?:\s*:)?")
_CLOCK = re.compile(r"[\dt.+-]+")  # before a colon inside a date, as in "unavailable_after: 25 Jun 2010 15:00:00 PST"


def metas_opt_out(metas: list[tuple[str, str]], token: str = "vitrail") -> bool:
    """Whether a page's meta elements, as (name, content), opt its images out."""
    return bool(metas_said(metas, token))


def metas_said(metas: list[tuple[str, str]], token: str = "vitrail") -> str:
    """The words with which a page's meta elements opt out, such as ``meta robots noai``; "" when they do not."""
    if any(name.strip().lower() == "tdm-reservation" and text.strip() == "1" for name, text in metas):
        return "meta tdm-reservation 1"
    words = sorted(meta_words(metas, token) & OPT_OUT)
    return f"meta robots {', '.join(words)}" if words else ""


def meta_words(metas: list[tuple[str, str]], token: str) -> set[str]:
    """The directives of all meta elements named ``robots`` or ``token``."""
    ours = ("robots", token.lower())
    return {word for name, text in metas if name.strip().lower() in ours for _, word in _directives(text)}


def header_opts_out(
    x_robots_tag: str | Iterable[str], tdm_reservation: str | Iterable[str], token: str = "vitrail"
) -> bool:
    """Whether response headers opt the response out; see :func:`headers_said`."""
    return bool(headers_said(x_robots_tag, tdm_reservation, token))


def headers_said(
    x_robots_tag: str | Iterable[str], tdm_reservation: str | Iterable[str], token: str = "vitrail"
) -> str:
    """The words with which response headers opt out, such as ``X-Robots-Tag noai``; "" when they do not.

    Both take all values of their header, each as one header was sent; or the value of the only one.
    """
    if any(value.strip() == "1" for value in _all(tdm_reservation)):
        return "TDM-Reservation 1"
    ours = _EVERYONE | {token.lower()}
    for value in _all(x_robots_tag):
        for agent, word in _directives(value):
            if word in OPT_OUT and agent in ours:
                return f"X-Robots-Tag {word}"
    return ""


def _all(values: str | Iterable[str]) -> Iterable[str]:
    return (values,) if isinstance(values, str) else values


def _directives(text: str) -> Iterator[tuple[str, str]]:
    """(agent, directive) of each word of one header's value, in lower case; the agent is "" before any is named."""
    agent, words = "", [word.replace(" ", "").replace("\t", "") for word in _TOKEN.findall(text.lower())]
    at = 0
    while at < len(words):
        name, colon, _ = words[at].partition(":")
        at += 1
        if colon and name in _VALUED:
            at += 1
        elif not colon:
            yield agent, name
        elif name != "unavailable_after" and not _CLOCK.fullmatch(name):
            agent = name.partition("/")[0]  # "vitrail/0.1"
