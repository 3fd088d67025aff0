"""From the samples of an opened file, whatever their mode and depth, to 8-bit RGB.

Samples of 16 bits and more are scaled by the depth that they use: cameras and microscopes write 10, 12 or 14 bits into
16-bit files, and few files say so. The depth is the smallest of :data:`DEPTHS` that holds the largest sample, so a
picture never comes out below a quarter of its brightness, and one that uses its 16 bits is scaled by all 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

RGB = npt.NDArray[np.uint8]

DEPTHS = (8, 10, 12, 14, 16)  # bits a sample
_PLAIN = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
_CLEAR = {"LA", "La", "PA", "RGBA", "RGBa"}
_BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA = 258, 262, 277, 338  # TIFF 6.0 tags
_PNG_DEPTH = 24  # the byte of a PNG's header that holds the bits of a sample


def shown(image: Any, data: bytes) -> RGB | None:
    """The first frame of Pillow's loaded ``image`` as uint8 RGB ``[H, W, 3]``, transparency over white.

    ``data`` are the file's bytes. None where the samples have no agreed range or meaning (floating point, CIELAB).
    """
    mode = image.mode
    if mode.startswith("I"):  # 16 or 32 bits, gray
        samples = np.asarray(image)
        gray = to_eight_bits(samples)
        if _zero_is_white(image):
            gray = 255 - gray
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            gray = np.where(samples == clear, np.uint8(255), gray)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if mode not in _PLAIN | _CLEAR:
        return None
    if _is_deep(image, data):
        deep = _deep(image, data)
        if deep is not None:
            return deep
    if mode in _CLEAR or "transparency" in image.info:
        return _over_white(image, data)
    return np.asarray(image.convert("RGB"))


def numbers(image: Any, data: bytes) -> npt.NDArray[np.int64]:
    """The samples of Pillow's loaded ``image`` as the file ``data`` has them, ``[H, W]`` or ``[H, W, C]``.

    A palette's are its indices.

    Raises:
        ValueError: they are no whole numbers.
    """
    samples = np.asarray(image)
    if samples.dtype.kind == "f":
        raise ValueError("floating-point samples")
    spread = _spread(image, data)
    return samples.astype(np.int64) // spread


def to_eight_bits(samples: npt.NDArray[np.integer[Any]]) -> RGB:
    """``samples`` of any shape as uint8, by the smallest depth that holds the largest; negative ones are 0."""
    bits = int(samples.max(initial=0)).bit_length()
    depth = next((depth for depth in DEPTHS if depth >= bits), bits)
    return np.asarray(np.maximum(samples, 0) >> (depth - 8), np.uint8)


def _over_white(image: Any, data: bytes) -> RGB:
    from PIL import Image

    clear = image.info.get("transparency")
    if image.mode == "L" and isinstance(clear, int):
        image.info["transparency"] = clear * _spread(image, data)  # Pillow leaves it as the file has it
    layer = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"))


def _spread(image: Any, data: bytes) -> int:
    """By how much Pillow multiplies gray samples of 2 and 4 bits, to spread them over 0 to 255."""
    bits = 8
    if image.mode == "L" and image.format == "PNG":
        bits = data[_PNG_DEPTH]
    elif image.mode == "L" and image.format == "TIFF":
        bits = image.tag_v2.get(_BITS, (8,))[0]
    return 255 // ((1 << bits) - 1) if bits in (2, 4) else 1


def _is_deep(image: Any, data: bytes) -> bool:
    """Whether the file has colour of 16 bits that the high bytes, which are all Pillow gives, do not show right."""
    if image.format == "PNG":
        deep = data[_PNG_DEPTH] == 16 and getattr(image, "n_frames", 1) == 1
    elif image.format == "TIFF":
        tags = image.tag_v2
        # Of four samples the last may be alpha that is multiplied in already, or anything: then Pillow knows.
        alpha = tags.get(_SAMPLES) == 3 or (tags.get(_SAMPLES) == 4 and tuple(tags.get(_EXTRA, ())) == (2,))
        deep = set(tags.get(_BITS, ())) == {16} and tags.get(_PHOTOMETRIC) == 2 and alpha
    else:
        deep = False
    if not deep:
        return False
    high = np.asarray(image)
    colours = high[..., :3] if high.ndim == 3 and high.shape[-1] >= 3 else high[..., :1]
    return "transparency" in image.info or int(colours.max(initial=0)) < 1 << (DEPTHS[-2] - 8)


def _deep(image: Any, data: bytes) -> RGB | None:
    """Colour of 16 bits through OpenCV, which keeps all of them (and, like Pillow, turns a TIFF by its orientation)."""
    import cv2

    try:
        found: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[:2] != image.size[::-1]:
        return None
    rgb = to_eight_bits(found[..., 2::-1])
    if found.shape[2] == 3:
        return np.ascontiguousarray(rgb)
    alpha = to_eight_bits(found[..., 3:]).astype(np.uint16)
    return np.asarray((rgb * alpha + 255 * (255 - alpha) + 127) // 255, np.uint8)


def _zero_is_white(image: Any) -> bool:
    """Whether a gray TIFF of 16 bits counts from white; of 8 bits Pillow turns it round itself."""
    return bool(image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0)
