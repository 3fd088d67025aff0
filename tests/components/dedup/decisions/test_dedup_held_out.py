"""No held-out image reaches training: by its bytes before a descriptor is asked, and by its pixels otherwise."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from components.dedup import stage
from components.dedup.decisions.decide import HELD_OUT, IDENTICAL
from components.dedup.decisions.reference import identical_rows, nothing_near
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile
from components.params import parse_params
from components.tables.parts import read_table
from components.tables.schemas import DECISIONS, INDEX, MANIFEST
from components.tracking import Run
from tests.components.dedup.dedup_pool import curate, only, picture, plain, run

EACH = 3  # pictures of a kind


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(rgb: np.ndarray, note: str = "") -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, note
    return saved(Image.fromarray(rgb), "JPEG", quality=95, exif=exif)


def noted(image: Image.Image, note: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", note)
    return saved(image, pnginfo=info)


def clear(rgb: np.ndarray, note: str = "") -> bytes:
    """A picture in its upper half, and black that nobody sees below."""
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    alpha[len(rgb) // 2 :] = 0
    return noted(Image.fromarray(np.dstack([np.where(alpha, rgb, 0), alpha])), note)


def deep(bits: int) -> Callable[..., bytes]:
    return lambda rgb, note="": noted(Image.fromarray((rgb[..., 0].astype(np.uint16) << 8) >> (16 - bits)), note)


def plainly(rgb: np.ndarray, note: str = "") -> bytes:
    return noted(Image.fromarray(rgb), note)


KINDS: dict[str, Callable[..., bytes]] = {
    "plain": plainly, "turned": turned, "clear": clear, "sixteen": deep(16), "twelve": deep(12),
}  # fmt: skip


def held_out(kind: str, number: int) -> np.ndarray:
    return picture(1000 + 10 * list(KINDS).index(kind) + number)


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "tracked", lambda *_, **__: contextlib.nullcontext(Run()))


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> BenchmarksFile:
    path = tmp_path_factory.mktemp("benchmark") / "labelled.parquet"
    images = [make(held_out(kind, number)) for kind, make in KINDS.items() for number in range(EACH)]
    images += [plainly(picture(i)) for i in range(4)]
    split = ["test"] * (len(images) - 4) + ["train"] * 4
    pq.write_table(pa.table({"image": images, "kind": [i % 2 for i in range(len(images))], "split": split}), path)
    return parse_params({"mine": {"kind": "parquet", "path": str(path), "labels": ["kind"]}}, BenchmarksFile, "test")


def pool(folder: Path, note: str = "") -> Path:
    """Six pictures of no benchmark, and every held-out one: its very bytes, or with a ``note`` in them."""
    pictures = {f"{kind}{i}": make(held_out(kind, i), note) for kind, make in KINDS.items() for i in range(EACH)}
    return curate(folder, pictures | {f"other{i}": plainly(picture(50 + i)) for i in range(6)})


def decided(folder: Path, curated: Path) -> dict[str, dict[str, object]]:
    index = read_table(curated / "index", INDEX)
    names = dict(zip(index["key"].to_pylist(), [url[17:-4] for url in index["url"].to_pylist()], strict=True))
    return {names[row["key"]]: row for row in read_table(folder / "decisions", DECISIONS).to_pylist()}


def test_identical_files_are_dropped_by_their_bytes(
    tmp_path: Path, benchmarks: BenchmarksFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "manifest")
    curated = pool(tmp_path / "curate")
    report = run(tmp_path, curated, benchmarks, plain())
    found = decided(tmp_path / "dedup", curated)
    reasons = {name: row["reason"] for name, row in found.items()}
    assert [reasons[f"other{i}"] for i in range(6)] == ["pool"] * 6
    for number, name in enumerate(f"{kind}{i}" for kind in KINDS for i in range(EACH)):
        assert (reasons[name], found[name]["match"]) == (IDENTICAL, f"mine/{number:05d}")
    assert report["reasons"] == {IDENTICAL: EACH * len(KINDS), "pool": 6}


def test_other_files_of_the_same_pixels_are_dropped_by_their_descriptors(
    tmp_path: Path, benchmarks: BenchmarksFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "manifest")
    curated = pool(tmp_path / "curate", note="written by another program")
    run(tmp_path, curated, benchmarks, plain())
    found = decided(tmp_path / "dedup", curated)
    for kind in KINDS:
        for i in range(EACH):
            row = found[f"{kind}{i}"]
            assert row["reason"] == HELD_OUT, (kind, i)
            assert row["similarity"] == pytest.approx(1, abs=2e-3)


def test_a_descriptor_that_sees_nothing_lets_no_identical_file_pass(
    tmp_path: Path, benchmarks: BenchmarksFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    curated = pool(tmp_path / "curate")
    monkeypatch.setattr("components.dedup.decisions.reference._match_part", lambda *given: nothing_near(*given[-1]))
    monkeypatch.setattr("components.dedup.checks.nearest_held_out", lambda rows, chosen, _: np.zeros(len(chosen)))
    only(monkeypatch, "manifest")
    assert run(tmp_path, curated, benchmarks, plain())["selected"] == 6
    # The manifest's own check does not believe the decisions.
    monkeypatch.setattr("components.dedup.decisions.reference.identical_rows", lambda table, _: np.full(len(table), -1))
    with pytest.raises(VitrailError, match=r"no image copies a held-out image.*15 of 21 rows"):
        run(tmp_path, curated, benchmarks, plain())


def test_a_held_out_image_whose_faces_were_blurred_is_known_by_what_was_crawled(
    tmp_path: Path, benchmarks: BenchmarksFile
) -> None:
    curated = pool(tmp_path / "curate")
    table = read_table(curated / "index", INDEX)
    digests = table["sha256"].to_pylist()
    blurred = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(len(table))]
    column = table.schema.get_field_index("stored_sha256")
    table = table.set_column(column, "stored_sha256", pa.array(blurred))
    assert identical_rows(table, [digests[2], blurred[5], digests[2]]).tolist()[:6] == [-1, -1, 0, -1, -1, 1]
    assert identical_rows(table, []).tolist() == [-1] * len(table)
    assert identical_rows(table.slice(0, 0), digests).tolist() == []


def test_of_the_pool_only_the_asked_side_is_kept_out(
    tmp_path: Path, benchmarks: BenchmarksFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "manifest")
    curated = curate(tmp_path / "curate", {f"train{i}": plainly(picture(i)) for i in range(4)} | {
        "other": plainly(picture(70))})  # fmt: skip
    assert run(tmp_path, curated, benchmarks, plain())["reasons"] == {"pool": 5}
    report = run(tmp_path, curated, benchmarks, plain(relative={"against": "all"}))
    assert report["reasons"] == {IDENTICAL: 4, "pool": 1}
    assert len(read_table(tmp_path / "dedup/manifest", MANIFEST)) == 1
