"""The name of an image: what an index row, a tar member and a block list know it by."""

from __future__ import annotations

import hashlib


def key_of(url: str) -> str:
    """An index row's key: the first 20 hex digits of the address's SHA-256."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:20]
