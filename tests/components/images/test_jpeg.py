"""Which JPEGs take the short way: those that Pillow would neither turn nor refuse."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.images.decode import DecodeLimits, encode_jpeg, probe
from components.images.jpeg import may_be_turned, plain_header

LIMITS = DecodeLimits()
SOI, SCAN = b"\xff\xd8", b"\xff\xda\x00\x04ab"


def segment(kind: int, content: bytes) -> bytes:
    return bytes([0xFF, kind]) + (len(content) + 2).to_bytes(2, "big") + content


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    return segment(0xE1, found.tobytes())


def xmp(form: str) -> bytes:
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + form.encode() + b"</x:xmpmeta>")


def picture(*segments: bytes) -> bytes:
    data = encode_jpeg(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3), 90)
    return SOI + b"".join(segments) + data[2:]


PROFILE = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(6000))


@pytest.mark.parametrize(
    "segments",
    [
        [exif(6)],
        [PROFILE, exif(6)],
        [PROFILE] * 11 + [exif(6)],
        [xmp("tiff:Orientation='1'"), PROFILE, exif(6)],
        [PROFILE, xmp('tiff:Orientation="6"')],
        [xmp("<tiff:Orientation>6</tiff:Orientation>")],
        [b"\xff\xff" + exif(6)],  # a marker may be filled up with 0xFF
    ],
)
def test_wherever_an_orientation_stands_it_is_found(segments: list[bytes]) -> None:
    data = picture(*segments)
    assert probe(data).orientation == 6  # in Pillow's eyes, too
    assert plain_header(data, LIMITS) is None


@pytest.mark.parametrize(
    "segments",
    [[], [PROFILE], [segment(0xFE, b"Exif Orientation, says a comment")], [xmp("<dc:title>Exif</dc:title>")]],
)
def test_what_has_none_is_plain(segments: list[bytes]) -> None:
    data = picture(*segments)
    assert probe(data).orientation == 1
    assert plain_header(data, LIMITS) == (40, 60, "RGB")


def test_an_orientation_after_the_first_scan_is_none() -> None:
    data = picture()
    assert not may_be_turned(data[:-2] + exif(6) + data[-2:])


def test_gray_is_told_from_colour_and_four_channels_are_left_alone() -> None:
    buffers = {}
    for mode in ("L", "RGB", "CMYK"):
        buffers[mode] = io.BytesIO()
        Image.new(mode, (60, 40)).save(buffers[mode], "jpeg")
    found = {mode: plain_header(buffer.getvalue(), LIMITS) for mode, buffer in buffers.items()}
    assert found == {"L": (40, 60, "GRAY"), "RGB": (40, 60, "RGB"), "CMYK": None}


@pytest.mark.parametrize("change", [{"max_bytes": 1000}, {"max_pixels": 2399}, {"min_side": 41}])
def test_outside_the_limits_the_general_decoder_has_the_word(change: dict[str, int]) -> None:
    data = picture()
    assert len(data) > 1000
    assert plain_header(data, DecodeLimits(max_pixels=2400, min_side=40)) is not None
    assert plain_header(data, DecodeLimits(**change)) is None


@given(st.binary(max_size=40))
def test_any_bytes_have_an_answer(tail: bytes) -> None:
    assert may_be_turned(tail) or tail[:2] == SOI
    assert not may_be_turned(SOI + SCAN + tail)
    may_be_turned(SOI + tail)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from([0xE0, 0xE2, 0xED, 0xFE, 0xDB]), st.binary(max_size=30)), max_size=6))
def test_segments_are_skipped_whatever_they_hold(content: list[tuple[int, bytes]]) -> None:
    before = b"".join(segment(kind, data) for kind, data in content)
    assert not may_be_turned(SOI + before + SCAN)
    assert may_be_turned(SOI + before + exif(1) + SCAN)
