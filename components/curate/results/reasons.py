"""Why an image link was dropped: a closed set. The index can hold no other reason than these and ``filter:NAME``.

``filter:NAME`` stands for a filter of the user's own (:mod:`components.curate.pixels.filters`).
"""

from __future__ import annotations

from components.images.decode import DECODE_REASONS

LINK_REASONS = (
    "forgotten",  # taken down (`forget`): its domain, its address or its bytes are on the list
    "restricted-domain",  # image, page or a redirect between them lies in a restricted registrable domain
    "robots-disallowed",  # robots.txt of the image's host forbids it to us
    "opt-out",  # noai, noimageai, noindex, noimageindex, noml or a TDM reservation, on page or image
    "declared-tracker",  # the page declares it 1 pixel wide or high
    "vector",  # SVG: no pixels of its own
)
FETCH_REASONS = (
    "changed",  # its bytes were replaced while they were curated
    "unreadable",  # its file is gone, not permitted, or on a disk that fails
    "not-fetched",  # the crawl holds no response for it
    "refused-address",  # it lies in a private or local network
    "too-many-redirects",
    "unreachable",  # no address, no connection, no valid certificate, or its host failed too often
    "timed-out",  # the fetch's deadline passed
    "http-error",  # the server answered with something other than 200
    "cut-short",  # the record ends before the response does: byte cap, lost connection, or a cut WARC file
)
DUPLICATE_REASONS = (
    "exact-duplicate",  # same SHA-256 as a kept image
    "near-duplicate",  # PCA hash within the radius of a kept image's
)
SAFETY_REASONS = ("nsfw",)

REASONS: tuple[str, ...] = (*LINK_REASONS, *FETCH_REASONS, *DECODE_REASONS, *DUPLICATE_REASONS, *SAFETY_REASONS)
