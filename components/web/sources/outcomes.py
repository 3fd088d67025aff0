"""How the end of a fetch is told as a reason: the crawl records outcomes, the index and its users speak of reasons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from components.errors import VitrailError, nearest
from components.tables.parts import opened, parts
from components.tables.schemas import OUTCOMES
from components.web.sources.link_table import iter_rows

# by outcome (components.crawl.fetch.OUTCOMES), "ok" aside
OUTCOME_REASONS = {
    "http-error": "http-error",
    "robots": "robots-disallowed",
    "restricted": "restricted-domain",
    "refused-address": "refused-address",
    "redirects": "too-many-redirects",
    "dns": "unreachable",
    "tls": "unreachable",
    "connection": "unreachable",
    "circuit-open": "unreachable",
    "timeout": "timed-out",
    "too-large": "too-many-bytes",
    "opt-out": "opt-out",
    "not-an-image": "not-an-image",
}


def outcomes_of(reasons: Iterable[str]) -> frozenset[str]:
    """The outcomes that ``reasons`` stand for; an outcome may be named itself.

    Raises:
        VitrailError: no fetch ends for such a reason.
    """
    known = sorted({*OUTCOME_REASONS, *OUTCOME_REASONS.values()})
    found: set[str] = set()
    for reason in reasons:
        meant = {outcome for outcome, told in OUTCOME_REASONS.items() if reason in (outcome, told)}
        if not meant:
            raise VitrailError(
                f"--reasons: no fetch ends as {reason!r}{nearest(reason, known)}; there are: {', '.join(known)}"
            )
        found |= meant
    return frozenset(found)


def outcome_files(path: Path) -> list[Path]:
    """The parts of a crawl's outcomes, checked. An older crawl has one file, which says nothing of itself.

    Raises:
        VitrailError: a part is missing, damaged or of another version; the crawl stage is named.
    """
    files = parts(path, OUTCOMES)
    if files != [path]:
        for file in files:
            opened(file, OUTCOMES).close()
    return files


def outcome_rows(path: Path) -> Iterator[dict[str, object]]:
    """The rows of a crawl's outcomes, a batch in memory at a time."""
    for file in outcome_files(path):
        yield from iter_rows(file)
