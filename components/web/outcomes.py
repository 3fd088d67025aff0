"""How the end of a fetch is told as a reason: the crawl records outcomes, the index and its users speak of reasons."""

from __future__ import annotations

from collections.abc import Iterable

from components.errors import VitrailError, nearest

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
