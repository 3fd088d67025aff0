"""Which JPEGs may be decoded straight by libjpeg-turbo, told from their header alone."""

from __future__ import annotations

from typing import NamedTuple

from components.images.decode import DecodeLimits

_START_OF_SCAN, _APP1, _STANDALONE = 0xDA, 0xE1, {0x01, *range(0xD0, 0xD9)}  # ITU-T T.81, table B.1


class Header(NamedTuple):
    """Pixels, and the samples' space as libjpeg-turbo names the output."""

    height: int
    width: int
    space: str  # "RGB" or "GRAY"


def plain_header(data: bytes, limits: DecodeLimits) -> Header | None:
    """The header of a plain JPEG; None for what :func:`components.images.decode.decode` must see, or refuse.

    That is anything else than a JPEG, CMYK, an image outside the limits, and one that may have to be turned.
    """
    if len(data) > limits.max_bytes or may_be_turned(data):
        return None
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if height * width > limits.max_pixels or min(height, width) < limits.min_side:
        return None
    if space not in ("YCbCr", "RGB", "Gray"):
        return None
    return Header(height, width, "GRAY" if space == "Gray" else "RGB")


def may_be_turned(data: bytes) -> bool:
    """Whether a segment before the first scan may tell an orientation: EXIF, or XMP that names one.

    True also where the segments of ``data`` cannot be followed, be it no JPEG at all. A dozen steps for most files,
    whatever their length: a colour profile before the EXIF is skipped, not searched.
    """
    if data[:2] != b"\xff\xd8":
        return True
    at, end = 2, len(data)
    while at + 4 <= end and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == _START_OF_SCAN:
            return False
        if kind == 0xFF or kind in _STANDALONE:  # filling before a marker, or a marker without a length
            at += 1 if kind == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2:
            return True
        if kind == _APP1:
            segment = data[at + 4 : at + 2 + length]
            if segment.startswith(b"Exif") or b"Orientation" in segment:
                return True
        at += 2 + length
    return True
