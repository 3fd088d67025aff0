"""Addresses, normalised once as the URL Standard of browsers says (WHATWG; by ada, the parser of Node.js).

What this module returns is the one string that is judged (robots.txt, domain lists), recorded and sent. Host names
are mapped to ASCII by UTS 46 without its transitional rules: ``straße.de`` is not ``strasse.de``.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import ada_url

MAX_ADDRESS = 8_192  # characters; servers refuse longer ones
_TRIMMED = "".join(map(chr, range(0x21)))  # what the standard takes from both ends
_SURROGATES = re.compile("[\ud800-\udfff]")
_NO_HOST = re.compile(r"[/\\?#@]")
_AFTER_HOST = re.compile(r"[/?#]|$")


def resolve(base: str, address: str) -> str:
    """``address`` made absolute and normal; "" unless it is a usable http(s) address without credentials.

    Normal: as a browser would send it, without the fragment. Dot segments (``%2e%2e`` too) are gone, backslashes are
    slashes, the host is in lower case and ASCII, a default port is left out, and what an address may not contain is
    percent-encoded. Escapes that are there stay as they are: ``%2F`` is no slash.
    """
    address = address.strip(_TRIMMED)
    if not address or len(address) > MAX_ADDRESS:
        return ""
    if not address.isascii():
        address = _SURROGATES.sub("\ufffd", address)
    try:
        whole = ada_url.join_url(base, address) if base else ada_url.normalize_url(address)
    except ValueError:  # also of a base that is no address: the address may be whole by itself
        try:
            whole = ada_url.normalize_url(address)
        except ValueError:
            return ""
    url = whole.partition("#")[0]
    if not url.startswith(("http://", "https://")) or len(url) > MAX_ADDRESS:
        return ""
    return "" if "@" in url[: url.index("/", 8)] else url


def normal_host(host: str) -> str:
    """A host's name as addresses hold it: lower case, in ASCII; "" when it is none."""
    url = resolve("", f"http://{host}/") if not _NO_HOST.search(host) else ""
    return url[len("http://") :].removesuffix("/")


def host_of(url: str) -> str:
    """The host that ``url``, in whatever spelling, leads to, without its port; "" when it is no address."""
    return urlsplit(resolve("", url)).hostname or ""


def origin(url: str) -> str:
    """``scheme://host[:port]`` of ``url``, lower case."""
    return url[: len(url) - len(target(url))].lower()


def target(url: str) -> str:
    """The path and query of ``url`` (absolute, or a path itself), as the line of a request has them."""
    if "://" not in url[:8]:
        return url
    start = _AFTER_HOST.search(url, url.index("://") + 3)
    return url[start.start() :] if start else ""
