"""What each kind of descriptor finds of edited copies, in percent: so that a report can say what it does not find.

Measured on photographs by ``python -m perf copy_limits``, with the windows of params/dedup.yaml: 300 originals, each
edited in every way, at the threshold at which one in two hundred has another photograph for a copy. The learned kinds
learned from 500 other photographs. SSCD's published weights could not be had for it.
"""

from __future__ import annotations

SELDOM = 50.0  # percent found, below which an edit is said to be seldom found

FOUND: dict[str, dict[str, float]] = {
    "discriminant": {
        "JPEG 5 to 30": 100.0,
        "scaled to 0.2 to 0.5": 100.0,
        "cropped to 0.9 of each side": 100.0,
        "cropped to 0.8 of each side": 100.0,
        "cropped to 0.55 of each side": 5.0,
        "mirrored": 11.7,
        "mirrored and cropped to 0.9": 10.0,
        "text over it": 100.0,
        "emoji over it": 98.3,
        "colours changed": 100.0,
        "border of 8 %": 99.7,
        "turned by 5 degrees": 99.3,
        "turned by 90 degrees": 0.7,
        "screenshot": 27.3,
        "collage of 2 or 4": 0.3,
    },
    "trained": {
        "JPEG 5 to 30": 100.0,
        "scaled to 0.2 to 0.5": 100.0,
        "cropped to 0.9 of each side": 100.0,
        "cropped to 0.8 of each side": 99.0,
        "cropped to 0.55 of each side": 9.7,
        "mirrored": 44.0,
        "mirrored and cropped to 0.9": 39.3,
        "text over it": 95.7,
        "emoji over it": 80.7,
        "colours changed": 70.7,
        "border of 8 %": 88.3,
        "turned by 5 degrees": 100.0,
        "turned by 90 degrees": 5.3,
        "screenshot": 7.3,
        "collage of 2 or 4": 0.3,
    },
    "thumbnail": {
        "JPEG 5 to 30": 100.0,
        "scaled to 0.2 to 0.5": 100.0,
        "cropped to 0.9 of each side": 97.3,
        "cropped to 0.8 of each side": 65.7,
        "cropped to 0.55 of each side": 0.0,
        "mirrored": 3.3,
        "mirrored and cropped to 0.9": 2.7,
        "text over it": 89.7,
        "emoji over it": 54.0,
        "colours changed": 100.0,
        "border of 8 %": 53.7,
        "turned by 5 degrees": 37.0,
        "turned by 90 degrees": 0.3,
        "screenshot": 0.3,
        "collage of 2 or 4": 0.0,
    },
}
# With the mirror image described, too; other edits within three percent of the above.
FLIPPED: dict[str, dict[str, float]] = {
    "discriminant": {"mirrored": 100.0, "mirrored and cropped to 0.9": 95.7},
    "trained": {"mirrored": 100.0, "mirrored and cropped to 0.9": 95.3},
    "thumbnail": {"mirrored": 100.0, "mirrored and cropped to 0.9": 25.7},
}


def seldom_found(kind: str, flip: bool) -> dict[str, float] | None:
    """Edits that a descriptor of that ``kind`` seldom finds, with the percent found; None: it was not measured.

    ``flip``: whether mirror images are described (``views.flip``).
    """
    if kind not in FOUND:
        return None
    found = FOUND[kind] | (FLIPPED[kind] if flip else {})
    return {edit: share for edit, share in found.items() if share < SELDOM}
