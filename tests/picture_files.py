"""Files of every kind that a data set may hold, each with the pixels that it shows, for the tests of all who decode."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[np.integer]
HEIGHT, WIDTH = 20, 28  # px of what is stored
LOSSY = 14  # levels by which a JPEG or AVIF may differ from what was encoded


def smooth(bits: int = 8, channels: int = 3, seed: int = 0) -> Array:
    """A smooth picture [H, W, C] whose samples use ``bits`` bits, no corner like another."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [(down * (7 + seed + c) + across * (3 + 2 * c)) / (HEIGHT * (7 + seed + c) + WIDTH * (3 + 2 * c))
              for c in range(channels)]  # fmt: skip
    return np.round(np.stack(planes, 2) * ((1 << bits) - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def turned(rgb: Array, orientation: int) -> Array:
    """What a viewer shows of stored pixels under an EXIF ``orientation`` (EXIF 2.3, table 5)."""
    corner = {1: rgb, 2: np.fliplr(rgb), 3: np.rot90(rgb, 2), 4: np.flipud(rgb), 5: np.rot90(np.fliplr(rgb), 1),
              6: np.rot90(rgb, -1), 7: np.rot90(np.fliplr(rgb), -1), 8: np.rot90(rgb, 1)}  # fmt: skip
    return corner[orientation]


def over_white(rgb: Array, alpha: Array) -> Array:
    """``rgb`` [H, W, 3] with ``alpha`` [H, W], both 0 to 255, over white."""
    share = alpha[..., None] / 255
    return np.round(rgb * share + 255 * (1 - share)).astype(np.uint8)


def as_rgb(gray: Array) -> Array:
    """``gray`` [H, W] in three channels."""
    return np.repeat(gray[..., None], 3, 2)


def saved(image: Image.Image, kind: str, orientation: int = 1, **options: object) -> bytes:
    """``image`` as a file."""
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(samples: Array, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of ``samples`` [H, W, C] written by hand: Pillow writes neither colour of 16 bits nor gray of 4."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        spread = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
        lines = [row.tobytes() for row in np.packbits(spread, axis=1)]
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def tiff(samples: Array, photometric: int, orientation: int = 1, bits: int = 16, extra: int | None = None) -> bytes:
    """An uncompressed little-endian TIFF of ``samples`` [H, W, C], of 16 or (packed, gray) 12 bits."""
    height, width, channels = samples.shape
    if bits == 12:
        pairs = samples.reshape(height, -1, 2).astype(np.uint32)
        a, b = pairs[..., 0], pairs[..., 1]
        data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 2).astype(np.uint8).tobytes()
    else:
        data = samples.astype("<u2").tobytes()
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, 0), (259, 3, 1, 1), (262, 3, 1, photometric),
               (273, 4, 1, 0), (274, 3, 1, orientation), (277, 3, 1, channels), (278, 3, 1, height),
               (279, 4, 1, len(data))]  # fmt: skip
    if extra is not None:
        entries.append((338, 3, 1, extra))
    depths = 8 + 2 + 12 * len(entries) + 4
    at = depths + 2 * channels
    values = {258: depths if channels > 2 else bits, 273: at}
    lines = b"".join(struct.pack("<HHII", tag, kind, n, values.get(tag, v)) for tag, kind, n, v in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + lines + struct.pack("<I", 0)
    return head + struct.pack(f"<{channels}H", *[bits] * channels) + data


@functools.cache
def pictures() -> dict[str, tuple[bytes, Array | str]]:
    """Name -> the file's bytes, and uint8 pixels [H, W, 3] that it shows or the reason why it shows none."""
    rgb = smooth()
    gray, alpha = rgb[..., 0], smooth(seed=5)[..., 1]
    image = Image.fromarray(rgb)
    found: dict[str, tuple[bytes, Array | str]] = {}
    lossless: dict[str, dict[str, object]] = {"PNG": {}, "BMP": {}, "WEBP": {"lossless": True}, "GIF": {},
                                              "TIFF": {}, "JPEG": {"quality": 98}, "AVIF": {"quality": 98}}  # fmt: skip
    for kind, options in lossless.items():
        source = image.quantize(64) if kind == "GIF" else image
        shown = np.asarray(source.convert("RGB"))
        found[f"plain {kind}"] = saved(source, kind, **options), shown
        for orientation in range(2, 9) if kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") else ():
            found[f"{kind} turned {orientation}"] = (
                saved(source, kind, orientation, **options),
                turned(rgb, orientation),
            )
    for orientation in range(2, 9):
        packed = saved(image, "TIFF", orientation, compression="tiff_lzw")
        found[f"TIFF, compressed, turned {orientation}"] = packed, turned(rgb, orientation)
        found[f"gray JPEG turned {orientation}"] = (
            saved(Image.fromarray(gray), "JPEG", orientation, quality=98), turned(as_rgb(gray), orientation)
        )  # fmt: skip
        twelve = smooth(12)
        deep = tiff(twelve, 2, orientation)
        found[f"TIFF of 12 bits in 16, turned {orientation}"] = deep, turned(twelve >> 4, orientation)
    for kind in ("PNG", "TIFF", "WEBP", "AVIF"):
        clear = Image.fromarray(np.dstack([rgb, alpha]), "RGBA")
        found[f"RGBA {kind}"] = saved(clear, kind, **lossless[kind]), over_white(rgb, alpha)
    for kind in ("PNG", "TIFF", "BMP", "JPEG"):
        found[f"gray {kind}"] = saved(Image.fromarray(gray), kind, **lossless[kind]), as_rgb(gray)
    found["gray and alpha"] = (
        saved(Image.fromarray(np.dstack([gray, alpha]), "LA"), "PNG"),
        over_white(as_rgb(gray), alpha),
    )
    palette = image.quantize(16)
    numbers, colours = np.asarray(palette), np.asarray(palette.convert("RGB"))
    found["palette"] = saved(palette, "PNG"), colours
    found["palette, one colour clear"] = (
        saved(palette, "PNG", transparency=3), over_white(colours, np.where(numbers == 3, 0, 255)),
    )  # fmt: skip
    shares = np.arange(0, 256, 17, dtype=np.uint8)
    found["palette with an alpha for each"] = (
        saved(palette, "PNG", transparency=shares.tobytes()), over_white(colours, shares[numbers]),
    )  # fmt: skip
    found["gray, one value clear"] = (
        saved(Image.fromarray(gray), "PNG", transparency=int(gray[5, 5])),
        over_white(as_rgb(gray), np.where(gray == gray[5, 5], 0, 255)),
    )  # fmt: skip
    one = (gray > 100).astype(np.uint8)
    found["1 bit"] = saved(Image.fromarray(one * 255).convert("1"), "PNG"), as_rgb(one * 255)
    found["1 bit TIFF"] = (
        saved(Image.fromarray(one * 255).convert("1"), "TIFF", compression="group4"),
        as_rgb(one * 255),
    )
    four = smooth(4)[..., :1]
    found["gray of 4 bits"] = png(four, 4, 0), as_rgb(four[..., 0] * 17)
    found["gray of 4 bits, one value clear"] = (
        png(four, 4, 0, (b"tRNS", struct.pack(">H", 7))),
        over_white(as_rgb(four[..., 0] * 17), np.where(four[..., 0] == 7, 0, 255)),
    )  # fmt: skip
    cmyk = image.convert("CMYK")
    found["CMYK JPEG"] = saved(cmyk, "JPEG", quality=98), rgb
    found["CMYK TIFF"] = saved(cmyk, "TIFF"), rgb
    for bits in (10, 12, 14, 16):
        deep = smooth(bits)
        eight = (deep >> (bits - 8)).astype(np.uint8)
        name = "16 bits" if bits == 16 else f"{bits} bits in 16"
        found[f"gray PNG of {name}"] = saved(Image.fromarray(deep[..., 0]), "PNG"), as_rgb(eight[..., 0])
        found[f"gray TIFF of {name}"] = saved(Image.fromarray(deep[..., 0]), "TIFF"), as_rgb(eight[..., 0])
        found[f"colour PNG of {name}"] = png(deep, 16, 2), eight
        found[f"colour TIFF of {name}"] = tiff(deep, 2), eight
        value = int(deep[7, 7, 0])
        found[f"gray PNG of {name}, one value clear"] = (
            png(deep[..., :1], 16, 0, (b"tRNS", struct.pack(">H", value))),
            over_white(as_rgb(eight[..., 0]), np.where(deep[..., 0] == value, 0, 255)),
        )  # fmt: skip
        found[f"colour PNG of {name}, one colour clear"] = (
            png(deep, 16, 2, (b"tRNS", struct.pack(">HHH", *map(int, deep[7, 7])))),
            over_white(eight, np.where((deep == deep[7, 7]).all(2), 0, 255)),
        )  # fmt: skip
        full = (alpha.astype(np.uint16) * 257)[..., None]
        found[f"RGBA PNG of {name}"] = png(np.dstack([deep, full]), 16, 6), over_white(eight, alpha)
        found[f"RGBA TIFF of {name}"] = tiff(np.dstack([deep, full]), 2, extra=2), over_white(eight, alpha)
        found[f"gray and alpha PNG of {name}"] = (
            png(np.dstack([deep[..., 0], full]), 16, 4), over_white(as_rgb(eight[..., 0]), alpha),
        )  # fmt: skip
    twelve = smooth(12)[..., :1]
    found["gray TIFF of 12 bits, packed"] = tiff(twelve, 1, bits=12), as_rgb(twelve[..., 0] >> 4)
    found["gray TIFF of 16 bits, zero is white"] = (
        tiff(smooth(16)[..., :1], 0), 255 - as_rgb(smooth(16)[..., 0] >> 8).astype(np.uint8),
    )  # fmt: skip
    whole = smooth(16)[..., 0].astype(np.int32)
    found["gray TIFF of 32 bits"] = saved(Image.fromarray(whole), "TIFF"), as_rgb(whole >> 8)
    others = [Image.fromarray(smooth(seed=i)) for i in (3, 9)]
    for kind in ("PNG", "WEBP", "TIFF"):
        data = saved(image, kind, save_all=True, append_images=others, **lossless[kind])
        found[f"animated {kind}"] = data, rgb
    animated = saved(image.quantize(64), "GIF", save_all=True, append_images=[one.quantize(64) for one in others])
    found["animated GIF"] = animated, np.asarray(image.quantize(64).convert("RGB"))
    found["float TIFF"] = saved(Image.fromarray(gray.astype(np.float32) / 255), "TIFF"), "unsupported-mode"
    found["CIELAB TIFF"] = saved(Image.fromarray(rgb, "LAB"), "TIFF"), "unsupported-mode"
    return found


def near(name: str, found: Array, shown: Array) -> bool:
    """Whether ``found`` are the pixels that the picture called ``name`` shows, up to what its format loses."""
    if found.shape != shown.shape:
        return False
    most = LOSSY if "JPEG" in name or "AVIF" in name else 1 if "alpha" in name or "RGBA" in name else 0
    return int(np.abs(found.astype(int) - shown.astype(int)).max()) <= most
