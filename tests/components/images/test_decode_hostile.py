"""Bombs of each format, animations, counts that agree with Pillow, and a child process that may die."""

from __future__ import annotations

import importlib
import io
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hostile_images import KINDS, bomb, noise, saved, unpacking
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.images.decode import DecodeError, DecodeLimits, decode, looks_like_image, prepare, probe
from components.images.headers import gif_frames, webp_size
from components.images.sandbox import Sandbox, SandboxParams, kept


def reason(data: bytes, run: Callable[[bytes], object]) -> str:
    with pytest.raises(DecodeError) as caught:
        run(data)
    return caught.value.reason


def look(data: bytes) -> bytes:
    return str(decode(data, DecodeLimits(max_bytes=100_000_000)).shape).encode()


@pytest.fixture(scope="module")
def tight() -> Iterator[Sandbox]:
    with Sandbox(look, SandboxParams(megabytes=64), prepare) as apart:
        yield apart


@pytest.fixture(scope="module")
def roomy() -> Iterator[Sandbox]:
    with Sandbox(look, SandboxParams(), prepare) as apart:
        yield apart


@pytest.mark.parametrize("kind", KINDS)
def test_a_declared_bomb_costs_no_memory(kind: str, tight: Sandbox) -> None:
    assert looks_like_image(bomb(kind))
    # AVIF's own parser compares its two headers, and opens no such file.
    assert reason(bomb(kind), tight) == ("not-an-image" if kind == "AVIF" else "too-many-pixels")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_unpacks_to_more_than_it_may_have_ends_as_itself_alone(
    kind: str, tight: Sandbox, roomy: Sandbox
) -> None:
    large, side = unpacking(kind)
    assert reason(large, tight) in ("too-much-memory", "corrupt", "decoder-crash")
    assert tight(saved(noise(), "PNG")) == b"(64, 64, 3)"
    assert roomy(large) == f"({side}, {side}, 3)".encode()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "lime", "blue")]
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert probe(data).frames == 3
    assert np.abs(decode(data, DecodeLimits(max_frames=3)).astype(int) - (255, 0, 0)).max() <= 3
    assert reason(data, lambda d: decode(d, DecodeLimits(max_frames=2))) == "too-many-frames"


def test_avif_with_transparency_and_sixteen_bit_colour() -> None:
    rgb = np.asarray(noise().resize((64, 64), Image.Resampling.BICUBIC))
    clear = Image.fromarray(np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)]), "RGBA")
    assert (decode(saved(clear, "AVIF"), DecodeLimits()) >= 253).all()
    import cv2

    deep = cv2.imencode(".png", rgb[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes()
    assert np.array_equal(decode(deep, DecodeLimits()), rgb)


def test_frames_of_a_long_gif_are_counted_in_no_time() -> None:
    frames = [Image.new("RGB", (1, 1), color) for color in ("red", "blue")]
    start = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert gif_frames(start, 100) == 2
    one = b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0"
    bomb = start[:-1] + one * 1_000_000 + b";"
    began = time.process_time()
    assert reason(bomb, lambda d: decode(d, DecodeLimits())) == "too-many-frames"
    assert time.process_time() - began < 1


def test_a_long_chain_of_tiff_directories_is_not_walked_to_its_end() -> None:
    entries = b"".join(struct.pack("<HHII", *entry) for entry in ((256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8),
                       (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 0), (279, 4, 1, 64)))  # fmt: skip
    size = 2 + len(entries) + 4
    chain = [struct.pack("<H", 7) + entries + struct.pack("<I", 8 + size * (i + 1)) for i in range(50_000)]
    data = b"II*\0" + struct.pack("<I", 8) + b"".join(chain)
    began = time.process_time()
    assert reason(data, lambda d: decode(d, DecodeLimits())) == "too-many-frames"
    assert time.process_time() - began < 2
    circle = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 7) + entries + struct.pack("<I", 8)
    assert probe(circle).frames in (1, 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_own_headers_agree_with_pillow(count: int, width: int, height: int, lossless: bool) -> None:
    frames = [Image.new("RGB", (width, height), (i * 40, 0, 0)) for i in range(count)]
    gif = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(gif)) as image:
        assert gif_frames(gif, 100) == image.n_frames
    webp = saved(frames[0], "WEBP", save_all=count > 1, append_images=frames[1:], lossless=lossless)
    assert webp_size(webp) == (width, height)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([b"", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8X", b"RIFF\0\0\0\0WEBPVP8L"]))
def test_own_headers_take_any_bytes(tail: bytes, head: bytes) -> None:
    assert gif_frames(head + tail, 5) <= 6
    size = webp_size(head + tail)
    assert size is None or min(size) >= 0
    looks_like_image((head + tail)[:32])


def misbehaves(data: bytes) -> bytes:
    match data:
        case b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"exit":
            os._exit(0)
        case b"hang":
            time.sleep(60)
        case b"spin":
            while True:
                pass
        case b"memory":
            return bytes(1 << 30)[:1]
        case b"refuse":
            raise DecodeError("truncated", "detail")
        case b"bug":
            raise KeyError("ours")
    return data[::-1]


def test_whatever_the_child_does_the_next_image_is_served() -> None:
    with Sandbox(misbehaves, SandboxParams(megabytes=200, seconds=0.5)) as apart:
        for word, expected in ((b"crash", "decoder-crash"), (b"exit", "decoder-crash"), (b"hang", "too-slow"),
                               (b"spin", "too-slow"), (b"memory", "too-much-memory"),
                               (b"refuse", "truncated")):  # fmt: skip
            assert reason(word, apart) == expected
            assert apart(b"abc") == b"cba"
        with pytest.raises(RuntimeError, match="KeyError"):
            apart(b"bug")
        assert apart(bytes(range(256)) * 40_000) == (bytes(range(256)) * 40_000)[::-1]  # more than a socket holds
        assert apart(b"") == b""
        child = apart.pid
        assert child != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def own_pid(data: bytes) -> bytes:
    return str(os.getpid()).encode()


def test_without_a_child_the_function_runs_here() -> None:
    with Sandbox(own_pid, SandboxParams(enabled=False)) as here:
        assert here(b"") == str(os.getpid()).encode()


def test_a_child_is_kept_and_shares_nothing_with_threads_or_forks() -> None:
    params = SandboxParams(megabytes=200)
    with ThreadPoolExecutor(4) as pool:
        pids = {bytes(answer) for answer in pool.map(kept(own_pid, params), [b""] * 40)}
    assert pids == {str(kept(own_pid, params).pid).encode()}
    if not (fork := os.fork()):
        try:
            own = bytes(kept(own_pid, params)(b""))
        finally:
            os._exit(0 if own not in pids else 1)
    assert os.waitpid(fork, 0)[1] == 0
    assert bytes(kept(own_pid, params)(b"")) in pids  # still there after the fork's end
    kept(own_pid, params).close()


def test_a_child_that_cannot_be_started_says_why() -> None:
    class Nowhere:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
            return importlib.import_module, ("no_such_module",)

    with Sandbox(Nowhere(), SandboxParams()) as apart, pytest.raises(RuntimeError, match="no_such_module"):  # type: ignore[arg-type]
        apart(b"")
