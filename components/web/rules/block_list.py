"""What was taken down and must not come back: domains, images by key, and bytes by digest, a line each.

Keys and digests name an image without keeping its address: the list may be shared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from components.errors import VitrailError
from components.storage import atomic_file
from components.text import read_lines, read_text
from components.web.rules.keys import key_of

HEAD = """\
# What `python -m components.provenance forget` took down, and no later run takes in again. A line each:
#   domain NAME    it and all below it, images and pages
#   key HEX        an image by the first 20 hex digits of the SHA-256 of its address
#   sha256 HEX     an image by its bytes as crawled, under whatever address
"""
_FORMS = {"domain": r"[a-z0-9.:_-]+", "key": r"[0-9a-f]{20}", "sha256": r"[0-9a-f]{64}"}


@dataclass(frozen=True)
class Forgotten:
    """The entries of one or more lists."""

    domains: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()

    @staticmethod
    def read(paths: Iterable[Path]) -> Forgotten:
        """The entries of the lists at ``paths``.

        Raises:
            VitrailError: no such list, or a line that is no entry.
        """
        found: dict[str, set[str]] = {kind: set() for kind in _FORMS}
        for path in paths:
            for kind, value in entries(path):
                found[kind].add(value)
        return Forgotten(*(frozenset(found[kind]) for kind in ("domain", "key", "sha256")))

    def domain_of(self, url: str) -> str:
        """The entry that the host of ``url`` lies in, or ""."""
        if not self.domains:
            return ""
        host = (urlsplit(url).hostname or "").rstrip(".").lower()
        return next((domain for domain in self.domains if below(host, domain)), "")

    def holds(self, url: str) -> bool:
        """Whether the image at ``url`` must not come back."""
        return bool(self.domain_of(url)) or (bool(self.keys) and key_of(url) in self.keys)


def below(host: str, domain: str) -> bool:
    """Whether ``host`` is ``domain`` or lies below it."""
    return host == domain or host.endswith(f".{domain}")


def entries(path: Path) -> list[tuple[str, str]]:
    """(kind, value) of every line of ``path``.

    Raises:
        VitrailError: no such list, or a line that is no entry.
    """
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        raise VitrailError(f"{path}: no such list; name another under policy.forgotten, or []") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        kind = words[0]
        if len(words) != 2 or not re.fullmatch(_FORMS.get(kind, r"(?!)"), words[1]):
            raise VitrailError(
                f"{path}, line {number}: {line.strip()!r} is not `domain NAME`, `key HEX` or `sha256 HEX`"
            )
        found.append((kind, words[1]))
    return found


def remember(path: Path, wanted: Iterable[tuple[str, str]], note: str) -> int:
    """Add the entries that ``path`` lacks, with ``note`` as their comment; returns how many. Whole or not at all."""
    known = set(entries(path)) if path.exists() else set()
    fresh = [entry for entry in dict.fromkeys(wanted) if entry not in known]
    if not fresh:
        return 0
    text = read_text(path) if path.exists() else HEAD
    text += "" if text.endswith("\n") else "\n"
    with atomic_file(path, "w") as file:
        file.write(text + f"# {note}\n" + "".join(f"{kind} {value}\n" for kind, value in fresh))
    return len(fresh)
