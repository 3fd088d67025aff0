"""From untrusted bytes to an RGB array, with every limit checked on the header before a pixel is decoded.

Every room decodes here, so the same bytes are the same pixels in the pool, in the benchmarks and in training.
JPEG goes through libjpeg-turbo (simplejpeg); whatever it refuses, and every other format, through Pillow, whose plugins
are restricted to a short list. The faults that data can have are a closed set, :data:`DECODE_REASONS`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field

from components.images import heif
from components.images.headers import gif_frames, is_raw_tiff, webp_size
from components.images.samples import RGB as RGB
from components.images.samples import numbers, shown
from components.params import Strict

DecodeReason = Literal[
    "too-many-bytes",  # longer than max_bytes
    "not-an-image",  # no known image format begins like this
    "too-many-pixels",  # the header declares more than max_pixels
    "too-many-frames",  # an animation longer than max_frames
    "too-small",  # one side below min_side
    "truncated",  # the data end before the image does
    "corrupt",  # a decoder gave up for another reason
    "unsupported-mode",  # floating-point or other samples with no agreed range
    "too-much-memory",  # the decoder wanted more than it may have
    "too-slow",  # it took longer than one image may (images/sandbox.py)
    "decoder-crash",  # it took its process down (images/sandbox.py)
]
DECODE_REASONS: tuple[DecodeReason, ...] = get_args(DecodeReason)

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
_MAX_COUNTED = 10_000  # frames that are counted where no limit is given
_PILLOW_WARNS_AT = 89_478_485  # Pillow's own guard, which ours must not exceed
_ORIENTATION_TAG = 0x0112

HEAD_BYTES = 32  # enough for :func:`looks_like_image`


class DecodeLimits(Strict):
    """What an image may cost and must offer."""

    max_bytes: int = Field(20_000_000, ge=1, le=2**50)
    max_pixels: int = Field(50_000_000, ge=1, le=_PILLOW_WARNS_AT)
    max_frames: int = Field(64, ge=1, le=1_000_000)
    min_side: int = Field(1, ge=1, le=8192)  # pixels


@dataclass(frozen=True)
class Probe:
    """What the header says; width and height in pixels as shown, so after EXIF orientation."""

    format: str
    width: int
    height: int
    frames: int
    orientation: int = 1  # what is still to undo once the pixels are decoded


class DecodeError(Exception):
    """These bytes are not an image within the limits; ``reason`` says why, from :data:`DECODE_REASONS`."""

    def __init__(self, reason: DecodeReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: DecodeReason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        # Crosses process boundaries: Exception's own pickling would pass the message as the reason.
        return (DecodeError, (self.reason,))


def prepare() -> None:
    """Load the decoders now rather than with the first image."""
    import cv2  # noqa: F401
    import simplejpeg  # noqa: F401
    from PIL import Image

    Image.init()
    heif.register()


def probe(data: bytes) -> Probe:
    """Format, size and frame count from the header of ``data``; no pixel is decoded.

    Raises:
        DecodeError: "not-an-image", "truncated", "corrupt", or "too-many-pixels" where Pillow's own guard steps in.
    """
    with _opened(data, _PILLOW_WARNS_AT) as image:
        return _probe(image, data, _MAX_COUNTED)


def looks_like_image(head: bytes) -> bool:
    """Whether data that begin with ``head`` (:data:`HEAD_BYTES` of them) could be of a format that is decoded here."""
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[4:8] == b"ftyp":
        return head[8:12] in (b"avif", b"avis") or heif.is_heif(head)
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*"))


def decode(data: bytes, limits: DecodeLimits) -> RGB:
    """``data`` as uint8 RGB ``[H, W, 3]``: first frame, EXIF orientation applied, transparency over white.

    Raises:
        DecodeError: with the reason, the cheap checks first.
    """
    return decode_probed(data, limits)[0]


def decode_probed(data: bytes, limits: DecodeLimits) -> tuple[RGB, Probe]:
    """:func:`decode`, with the header's facts beside the pixels."""
    if len(data) > limits.max_bytes:
        raise DecodeError("too-many-bytes", f"{len(data)} > {limits.max_bytes}")
    with _opened(data, limits.max_pixels) as image:
        facts = _checked(image, data, limits)
        rgb = _turbo(data) if facts.format == "jpeg" and image.mode in ("RGB", "L") else None
        if rgb is None:
            rgb = _pillow(image, data)
    rgb = np.ascontiguousarray(_oriented(rgb, facts.orientation))
    return rgb, replace(facts, height=rgb.shape[0], width=rgb.shape[1])


def decode_numbers(data: bytes, limits: DecodeLimits) -> npt.NDArray[np.int64]:
    """The samples of ``data`` as numbers, ``[H, W]`` or ``[H, W, C]``: class numbers of a mask, a palette's indices.

    Nothing is scaled or made RGB; limits and orientation are those of :func:`decode`.

    Raises:
        DecodeError: as :func:`decode`; "unsupported-mode" for floating-point samples.
    """
    if len(data) > limits.max_bytes:
        raise DecodeError("too-many-bytes", f"{len(data)} > {limits.max_bytes}")
    with _opened(data, limits.max_pixels) as image:
        facts = _checked(image, data, limits)
        heif.load(image)
        try:
            found = numbers(image, data)
        except ValueError as fault:
            raise DecodeError("unsupported-mode", str(fault)) from None
    return np.ascontiguousarray(_oriented(found, facts.orientation))


def encode_jpeg(rgb: RGB, quality: int) -> bytes:
    """``rgb`` ``[H, W, 3]`` uint8 as a JPEG without chroma subsampling."""
    import simplejpeg

    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=quality, colorsubsampling="444")
    return data


class _opened:
    """Pillow's lazy image over ``data``; every fault on the way becomes a :class:`DecodeError`."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        self._data, self._max_pixels = data, max_pixels

    def __enter__(self) -> Any:
        from PIL import Image, UnidentifiedImageError

        if not self._data:
            raise DecodeError("not-an-image", "no bytes")
        size = webp_size(self._data)
        if size is not None and size[0] * size[1] > self._max_pixels:
            raise DecodeError("too-many-pixels", f"{size[0]} x {size[1]}")
        if is_raw_tiff(self._data):
            raise DecodeError("not-an-image", "a camera's raw file, whose first picture is a thumbnail")
        formats: tuple[str, ...] = _FORMATS
        if heif.is_heif(self._data[:HEAD_BYTES]):
            heif.register()  # until then Pillow does not know the name
            formats = (*_FORMATS, "HEIF")
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")  # damaged EXIF and the bomb warning: the limits below decide
        try:
            self._image = Image.open(io.BytesIO(self._data), formats=formats)
        except BaseException as fault:
            self._warnings.__exit__(None, None, None)
            if isinstance(fault, UnidentifiedImageError):
                # libheif reads all of a file's items to open it, so a cut one does not open.
                raise DecodeError("corrupt" if self._data[8:12] in heif.BRANDS else "not-an-image") from None
            if isinstance(fault, Exception):
                raise _explained(fault) from None
            raise
        return self._image

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        self._image.close()
        self._warnings.__exit__(None, None, None)
        # Pillow's plugins let nearly any exception out on hostile data; all of them mean the data are at fault.
        if isinstance(fault, Exception) and not isinstance(fault, DecodeError):
            raise _explained(fault) from None


def _explained(fault: Exception) -> DecodeError:
    from PIL import Image

    text = str(fault).lower()
    if isinstance(fault, Image.DecompressionBombError):
        return DecodeError("too-many-pixels", text)
    if isinstance(fault, MemoryError):
        return DecodeError("too-much-memory", text)
    if isinstance(fault, EOFError) or any(word in text for word in ("truncated", "premature", "unexpected end")):
        return DecodeError("truncated", text)
    return DecodeError("corrupt", text)


def _checked(image: Any, data: bytes, limits: DecodeLimits) -> Probe:
    """The header's facts, within ``limits``."""
    width, height = image.size
    if width * height > limits.max_pixels:  # first: to find a PNG's EXIF, Pillow reads all its pixels
        raise DecodeError("too-many-pixels", f"{width} x {height}")
    facts = _probe(image, data, limits.max_frames)
    if min(facts.width, facts.height) < limits.min_side:
        raise DecodeError("too-small", f"{facts.width} x {facts.height}")
    if facts.frames > limits.max_frames:
        raise DecodeError("too-many-frames", f"{facts.frames} > {limits.max_frames}")
    return facts


def _probe(image: Any, data: bytes, most: int) -> Probe:
    """The header's facts; frames are counted up to ``most`` + 1."""
    width, height = image.size
    if width < 1 or height < 1:
        raise DecodeError("corrupt", f"{width} x {height}")
    kind = str(image.format).lower()
    orientation = 1 if kind == "tiff" else _orientation(image)  # Pillow turns a TIFF itself, its size included
    if orientation >= 5:
        width, height = height, width
    frames = _frames(image, kind, data, most)
    return Probe("jpeg" if kind == "mpo" else kind, width, height, frames, orientation)


def _frames(image: Any, kind: str, data: bytes, most: int) -> int:
    if kind in ("jpeg", "mpo", "heif"):
        return 1  # a multi-picture file (MPO, HEIF) is a photograph with further views: one frame for us
    if kind == "gif":
        return gif_frames(data, most)
    if kind == "tiff":
        # One by one: to ask Pillow for their number reads every directory of a chain that can be millions long.
        frames = 1
        with contextlib.suppress(EOFError):
            while frames <= most:
                image.seek(frames)
                frames += 1
        image.seek(0)
        return frames
    return int(getattr(image, "n_frames", 1))


def _orientation(image: Any) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # EXIF is a TIFF file inside the image, with every fault of its own: then it says nothing
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turbo(data: bytes) -> RGB | None:
    """The JPEG through libjpeg-turbo, or None for what it warns about: Pillow then decides."""
    import simplejpeg

    try:
        rgb: RGB = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError:
        return None
    return rgb


def _pillow(image: Any, data: bytes) -> RGB:
    heif.load(image)
    rgb = shown(image, data)
    if rgb is None:
        raise DecodeError("unsupported-mode", image.mode)
    return rgb


def _oriented(pixels: Any, orientation: int) -> Any:
    """Undo the camera's rotation (EXIF 2.3, table 5: what row 0 and column 0 of the stored image show)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
