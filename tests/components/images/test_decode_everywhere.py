"""The same bytes are the same pixels, in every room that decodes, for formats x orientations x modes."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_files import Array, near, pictures, png, saved, smooth
from PIL import Image

from components.curate.pixels.sandboxed_decode import SandboxedDecoder
from components.dedup.pool.extract import read_picture
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import QueryParams, load_benchmark
from components.evaluation.sets.dense_files import numbers_of
from components.images.decode import DecodeError, DecodeLimits, decode, decode_numbers, decode_probed, probe
from components.images.sandbox import SandboxParams
from components.learning.augment import AugmentParams, MultiCrop
from components.learning.crops import Draws
from components.storage import open_store

ROOT = Path(__file__).resolve().parents[3]
LIMITS = DecodeLimits()
SHOWN = [name for name, (_, expected) in pictures().items() if not isinstance(expected, str)]


@pytest.mark.parametrize("name", SHOWN)
def test_a_file_shows_its_picture(name: str) -> None:
    data, expected = pictures()[name]
    rgb, facts = decode_probed(data, LIMITS)
    assert rgb.dtype == np.uint8
    assert near(name, rgb, expected), np.abs(rgb.astype(int) - expected).max()
    assert (facts.height, facts.width) == rgb.shape[:2] == (probe(data).height, probe(data).width)


def test_what_has_no_agreed_range_is_refused() -> None:
    for name in pictures().keys() - set(SHOWN):
        data, reason = pictures()[name]
        with pytest.raises(DecodeError, match=str(reason)):
            decode(data, LIMITS)


def test_bytes_of_no_format_are_no_image_in_a_process_that_has_decoded_nothing() -> None:
    code = (
        "from components.images.decode import DecodeError, DecodeLimits, decode\n"
        "try:\n    decode(b'<html>', DecodeLimits())\nexcept DecodeError as fault:\n    print(fault.reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "not-an-image"


def test_every_room_decodes_alike(tmp_path: Path) -> None:
    files = {name: data for name, (data, _) in pictures().items()}
    pq.write_table(pa.table({"image": list(files.values()), "name": list(files)}), tmp_path / "x.parquet")
    params = QueryParams(kind="queries", path=str(tmp_path / "x.parquet"))
    benchmark = load_benchmark("x", params)
    eye = SandboxedDecoder(LIMITS, SandboxParams(enabled=False))
    crops = MultiCrop(AugmentParams(resize="opencv"))
    for number, (name, data) in enumerate(files.items()):
        (tmp_path / "file").write_bytes(data)
        place = {"shard": "file", "offset": 0, "length": len(data), "key": name}
        rooms = {
            "curate": lambda data=data: eye.pixels(data)[0],
            "dedup": lambda place=place: read_picture(open_store(str(tmp_path)), place),
            "benchmark": lambda number=number: benchmark.images.rgb(number),
            "dense probe": lambda data=data: numbers_of(data, "here", decode),
            "training": lambda data=data: three(
                crops._decode(data, [1000], [(1.0, 1.0)], Draws(np.random.default_rng(0)))[0]
            ),
        }
        if name not in SHOWN:
            for room in rooms.values():
                with pytest.raises((DecodeError, VitrailError), match=str(pictures()[name][1])):
                    room()
            continue
        expected = decode(data, LIMITS)
        for room, read in rooms.items():
            assert np.array_equal(read(), expected), (name, room)


def three(image: Array) -> Array:
    """Training keeps gray images in one channel."""
    return np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image


def test_no_other_file_opens_pictures() -> None:
    allowed = {
        "components/images/decode.py",
        "components/images/samples.py",
        "components/images/jpeg.py",
        "components/images/headers.py",  # quantisation tables: a header, no pixels
        "components/learning/augment.py",  # libjpeg-turbo's smaller scales, of what jpeg.py lets through
        "components/tracking/delivery.py",  # reads back the pictures that a run spooled for MLflow
        "components/descriptors/views.py",  # reads back the JPEG that it wrote itself, as a disturbance
    }
    readers = {"imdecode", "imread", "decode_jpeg", "exif_transpose", "imread_v2"}
    for path in sorted((ROOT / "components").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())) if name not in allowed else ():
            if isinstance(node, ast.Attribute):
                opened = node.attr == "open" and isinstance(node.value, ast.Name) and node.value.id == "Image"
                opened |= node.attr in readers
                assert not opened, f"{name}:{node.lineno}: decode by components.images"


def test_the_numbers_of_a_mask_are_what_the_file_holds() -> None:
    classes = (np.arange(20 * 28).reshape(20, 28) % 11).astype(np.uint8)
    palette = Image.fromarray(classes, "P")
    palette.putpalette([i * 20 % 256 for i in range(33)])
    sixteen = Image.fromarray(classes.astype(np.uint16))
    files = [saved(palette, "PNG"), saved(Image.fromarray(classes), "PNG"), png(classes[..., None], 4, 0)]
    files += [saved(sixteen, "PNG"), saved(Image.fromarray(classes), "TIFF")]
    for data in files:
        assert np.array_equal(decode_numbers(data, LIMITS), classes)
    assert np.array_equal(decode_numbers(saved(Image.fromarray(classes), "PNG", 6), LIMITS), np.rot90(classes, -1))
    assert np.array_equal(decode_numbers(saved(Image.fromarray(classes > 5), "PNG"), LIMITS), classes > 5)
    with pytest.raises(DecodeError, match="unsupported-mode"):
        decode_numbers(saved(Image.fromarray(classes.astype(np.float32)), "TIFF"), LIMITS)


def test_a_dark_picture_of_sixteen_bits_keeps_a_quarter_of_its_range() -> None:
    for bits in range(9, 17):
        gray = smooth(bits)[..., 0]
        shown = decode(saved(Image.fromarray(gray), "PNG"), LIMITS)
        assert shown.max() >= 60, bits  # the picture's own largest is 0.96 of its depth's
    with Image.open(io.BytesIO(saved(Image.fromarray(smooth(16)[..., 0]), "PNG"))) as opened:
        assert np.array_equal(decode(saved(opened, "PNG"), LIMITS)[..., 0], np.asarray(opened) >> 8)
