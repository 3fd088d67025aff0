"""What image headers say of size and frames, read without a decoder: for those whose decoders do too much to tell."""

from __future__ import annotations

import struct
from typing import Literal

_DNG_VERSION, _SUB_IFDS, _SUBFILE, _MAKE = 0xC612, 0x14A, 0xFE, 0x10F  # TIFF tags


def jpeg_tables(data: bytes) -> dict[int, list[int]]:
    """The quantisation tables of a JPEG by number, 64 steps each in Pillow's order; none where there are none to read.

    Only the header is read; no picture is decoded.
    """
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return {number: list(table) for number, table in (getattr(image, "quantization", None) or {}).items()}
    except (OSError, SyntaxError, ValueError):
        return {}


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP's canvas (RFC 9649), in pixels; None where the header does not say.

    Pillow's decoder allocates two whole canvases before it says how large they are.
    """
    kind = data[12:16]
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def gif_frames(data: bytes, most: int) -> int:
    """Frames of a GIF, counted up to ``most`` + 1 by walking over its blocks; a damaged one ends the count.

    Pillow counts by seeking through all of them, and a GIF of a few megabytes can hold hundreds of thousands.
    """
    if len(data) < 13:
        return 0
    at = 13 + _table(data[10])
    frames = 0
    while at < len(data) and frames <= most:
        kind = data[at]
        if kind == 0x21:  # extension: label, then blocks
            at = _after_blocks(data, at + 2)
        elif kind == 0x2C and at + 10 <= len(data):  # image: position, flags, colour table, code size, blocks
            frames += 1
            at = _after_blocks(data, at + 11 + _table(data[at + 9]))
        else:
            break
    return frames


def is_raw_tiff(head: bytes) -> bool:
    """Whether ``head`` begins a camera's raw file in TIFF form: its first picture is a thumbnail of the photograph.

    By the tags of its first directory, if ``head`` contains it: a DNG's version (DNG 1.4, chapter 2), or a
    maker, further directories, and a first picture that is marked as reduced (TIFF 6.0; NEF, ARW and others).
    """
    if head[:4] not in (b"II*\0", b"MM\0*"):
        return False
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    if head[8:10] == b"CR":  # Canon's CR2
        return True
    at = int.from_bytes(head[4:8], order)
    count = int.from_bytes(head[at : at + 2], order)
    tags = {}
    for entry in range(at + 2, min(at + 2 + 12 * count, len(head) - 11), 12):
        tags[int.from_bytes(head[entry : entry + 2], order)] = int.from_bytes(head[entry + 8 : entry + 12], order)
    return _DNG_VERSION in tags or (tags.get(_SUBFILE) == 1 and _SUB_IFDS in tags and _MAKE in tags)


def _table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1
