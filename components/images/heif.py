"""HEIC photographs (as phones write them) through libheif and libde265, by pi-heif's plugin for Pillow.

pi-heif decodes only: its wheels hold no encoder, so nothing in them is under the GPL. The picture is turned by libheif
and by nothing after it.
"""

from __future__ import annotations

import functools
from typing import Any

# Brands of still pictures and bursts coded as HEVC (ISO 23008-12, annex B), beside those that AVIF has too.
BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")


def is_heif(head: bytes) -> bool:
    """Whether data that begin with ``head`` could be HEIF; AVIF, which begins alike, is asked first."""
    return head[4:8] == b"ftyp" and head[8:12] in (*BRANDS, b"mif1", b"msf1", b"miaf")


@functools.cache
def register() -> None:
    """Teach Pillow to open HEIF; once a process, for it takes a tenth of a second."""
    import pi_heif

    pi_heif.options.DECODE_THREADS = 1  # the workers are many already
    pi_heif.register_heif_opener()


def load(image: Any) -> None:
    """Decode the first frame of Pillow's ``image``; of a HEIF the primary one, which need not be the first."""
    if image.format != "HEIF":
        image.seek(0)
    image.load()
