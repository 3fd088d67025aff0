"""What each reason of curation and dedup means, in words. A test compares the keys with the stages' own lists."""

from __future__ import annotations

from collections.abc import Mapping

CURATE: Mapping[str, str] = {
    "forgotten": "it was taken down",
    "restricted-domain": "its domain, or that of its page, is restricted",
    "robots-disallowed": "robots.txt of its host forbids it",
    "opt-out": "its page or its server opts out of such use",
    "declared-tracker": "its page declares it 1 pixel wide or high",
    "vector": "it is an SVG file and has no pixels",
    "changed": "its bytes were replaced while they were curated",
    "unreadable": "its file is gone, not permitted, or on a disk that fails",
    "not-fetched": "the crawl contains no response for it",
    "refused-address": "its host is in a private network",
    "too-many-redirects": "it was redirected too often",
    "unreachable": "its host could not be reached",
    "timed-out": "its host was too slow",
    "http-error": "its server did not answer with 200",
    "cut-short": "its file ends too early in the crawl",
    "too-many-bytes": "its file is larger than the limit",
    "not-an-image": "its bytes are not those of an image",
    "too-many-pixels": "it has more pixels than the limit",
    "too-many-frames": "it has more frames than the limit",
    "too-small": "it is smaller than the limit",
    "truncated": "its file ends too early",
    "corrupt": "its file is damaged",
    "unsupported-mode": "its kind of pixels has no agreed range",
    "too-much-memory": "decoding it needs more memory than the limit",
    "too-slow": "decoding it takes longer than the limit",
    "decoder-crash": "the decoder crashed on it",
    "exact-duplicate": "its bytes are those of a kept image",
    "near-duplicate": "it is a kept image, saved again or resized",
    "nsfw": "its NSFW score, or that of its copy, is above the threshold",
}
DEDUP: Mapping[str, str] = {
    "held-out": "it is a copy of a held-out image of a benchmark",
    "held-out-identical": "its bytes are those of a held-out image of a benchmark",
    "self-duplicate": "it is a copy of a kept image",
    "not-retrieved": "no query image found it",
    "not-sampled": "balancing did not choose it",
}


def meaning(reason: str) -> str:
    """``reason`` in words; the reason itself for one that is not known here."""
    if reason.startswith("filter:"):
        return f"your filter {reason.removeprefix('filter:')} scored it, or its copy, above the threshold"
    return CURATE.get(reason) or DEDUP.get(reason) or reason
