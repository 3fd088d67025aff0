"""Faces found and blurred out of recognition, scores bounded, on real photographs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from components.curate.contact_sheet import compose
from components.curate.safety import FaceParams, NsfwParams, blur_faces, find_faces, nsfw_scores
from components.images.decode import DecodeLimits, decode

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
