"""Decoding untrusted bytes: every limit and every hostile file ends with its reason."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.images.decode import DECODE_REASONS, DecodeError, DecodeLimits, decode, encode_jpeg, probe

LIMITS = DecodeLimits()


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """A smooth picture, so that JPEG keeps it close."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason_of(data: bytes, limits: DecodeLimits = LIMITS) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, limits)
    assert caught.value.reason in DECODE_REASONS
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    rgb = picture()
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(rgb), kind, **options)
    assert np.array_equal(decode(data, LIMITS), rgb)
    assert (probe(data).format, probe(data).width, probe(data).height) == (kind.lower(), 60, 40)


def test_jpeg_comes_back_closely_and_encode_is_its_inverse() -> None:
    rgb = picture()
    for data in (saved(Image.fromarray(rgb), "JPEG", quality=95), encode_jpeg(rgb, 95)):
        got = decode(data, LIMITS)
        assert got.shape == (40, 60, 3)
        assert got.dtype == np.uint8
        assert np.abs(got.astype(int) - rgb).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_as_pillow_applies_it(orientation: int, kind: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(picture()), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    got = decode(data, LIMITS)
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= 4  # two JPEG decoders
    facts = probe(data)
    assert (facts.height, facts.width) == got.shape[:2]


def test_modes_gray_palette_alpha_cmyk_and_sixteen_bits() -> None:
    gray = picture()[:, :, 0]
    as_rgb = np.repeat(gray[:, :, None], 3, 2)
    assert np.array_equal(decode(saved(Image.fromarray(gray), "PNG"), LIMITS), as_rgb)
    assert np.abs(decode(saved(Image.fromarray(gray), "JPEG", quality=97), LIMITS).astype(int) - as_rgb).mean() < 3
    sixteen = Image.fromarray(gray.astype(np.uint16) * 257)
    assert np.array_equal(decode(saved(sixteen, "PNG"), LIMITS), as_rgb)
    palette = Image.fromarray(picture()).quantize(16)
    assert np.array_equal(decode(saved(palette, "PNG"), LIMITS), np.asarray(palette.convert("RGB")))
    clear = Image.fromarray(np.dstack([picture(), np.zeros((40, 60), np.uint8)]), "RGBA")
    assert (decode(saved(clear, "PNG"), LIMITS) == 255).all()
    cmyk = Image.fromarray(picture()).convert("CMYK")
    assert np.abs(decode(saved(cmyk, "JPEG", quality=97), LIMITS).astype(int) - picture()).mean() < 8
    assert reason_of(saved(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")) == "unsupported-mode"


def test_hostile_files_end_with_their_reason() -> None:
    jpeg = saved(Image.fromarray(picture(200, 200)), "JPEG")
    assert reason_of(b"") == "not-an-image"
    assert reason_of(b"plain text, named .jpg") == "not-an-image"
    assert reason_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == "not-an-image"
    assert reason_of(jpeg[: len(jpeg) // 2]) == "truncated"
    png = saved(Image.fromarray(picture(200, 200)), "PNG")
    assert reason_of(png[: len(png) // 2]) == "truncated"
    assert reason_of(jpeg, DecodeLimits(max_bytes=100)) == "too-many-bytes"
    assert reason_of(jpeg, DecodeLimits(max_pixels=100 * 100)) == "too-many-pixels"
    assert reason_of(jpeg, DecodeLimits(min_side=201)) == "too-small"
    frames = [Image.fromarray(picture(seed=i)) for i in range(5)]
    animation = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert reason_of(animation, DecodeLimits(max_frames=4)) == "too-many-frames"
    assert decode(animation, DecodeLimits(max_frames=5)).shape == (40, 60, 3)


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    assert reason_of(bomb) == "too-many-pixels"


def test_the_error_crosses_process_boundaries() -> None:
    assert pickle.loads(pickle.dumps(DecodeError("truncated", "detail"))).reason == "truncated"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_decode_or_end_with_a_reason(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]))
    content = bytearray(saved(Image.fromarray(picture(16, 16)), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        rgb = decode(bytes(content), DecodeLimits(max_pixels=1_000_000))
    except DecodeError as caught:
        refused: str | None = caught.reason
    else:
        refused = None
        assert rgb.dtype == np.uint8
        assert rgb.ndim == 3
        assert rgb.shape[2] == 3
    assert refused in (None, *DECODE_REASONS)
