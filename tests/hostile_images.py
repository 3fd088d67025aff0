"""Images that cost more than they seem to, for the tests of what decodes them."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 60_000
KINDS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF")


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(side: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8))


def bomb(kind: str) -> bytes:
    """A small file whose header declares an enormous image."""
    data = bytearray(saved(noise(), kind))
    if kind == "PNG":
        data[16:24] = struct.pack(">II", SIDE, SIDE)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", SIDE, SIDE)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", SIDE, SIDE)
    elif kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", SIDE, SIDE)
    elif kind == "WEBP":
        canvas = (SIDE - 1).to_bytes(3, "little")
        data = data[:12] + b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + canvas + data[12:]
        data[4:8] = struct.pack("<I", len(data) - 8)
    elif kind == "TIFF":
        (at,) = struct.unpack("<I", data[4:8])
        for entry in range(at + 2, at + 2 + 12 * int.from_bytes(data[at : at + 2], "little"), 12):
            if struct.unpack("<H", data[entry : entry + 2])[0] in (256, 257):
                data[entry : entry + 12] = data[entry : entry + 2] + struct.pack("<HII", 4, 1, SIDE)
    else:
        at = data.index(b"ispe")
        data[at + 8 : at + 16] = struct.pack(">II", SIDE, SIDE)
    return bytes(data)


@functools.cache
def unpacking(kind: str) -> tuple[bytes, int]:
    """A small file of a large image within the pixel limit, and its side."""
    side = {"WEBP": 3000, "AVIF": 6000, "JPEG": 7000}.get(kind, 5000)
    options = {"WEBP": {"lossless": True, "method": 0}, "AVIF": {"speed": 10}, "TIFF": {"compression": "tiff_deflate"}}
    return saved(Image.new("RGB", (side, side), "teal"), kind, **options.get(kind, {})), side
