"""How good a picture is among its copies: what size, format and pixels say of edits and losses since the original.

A copy can be larger than its original (scaled up, framed, part of a collage), or of the same size with less in it
(compressed again, blurred). So pixels count only as far as they hold detail, lines that run straight across the whole
picture count as the seams of an edit, and a coarse quantisation counts against it, be it in the file or left in the
pixels from an earlier one. All are compared among copies of one picture only, whose content is the same.

The numbers below were chosen on scripted edits of photographs (``python -m perf keep``; docs/decisions.md has the
shares of originals kept).
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.images.headers import jpeg_tables
from components.images.samples import RGB

TILE, TILES = 128, 4  # detail is measured in 4 x 4 evenly spread tiles of so many pixels, at full resolution
CELL = 32  # pixels
LINE = 96  # pixels looked at along a line
MOST_BORDER = 0.45  # of a side that can be border
LEVEL = 14  # gray levels that a uniform line may spread over
# All on the scale of the logarithm of pixels: 0.7 is a factor of two.
SOFT, SOFTER = 0.45, 4.0  # detail that one may lack to the sharpest copy, and the price of what it lacks beyond
SCALED = 0.45  # of one with more pixels than the sharpest: detail lacking to it, per pixels more, that says "scaled up"
SEAM, CLEAR, SEAMS = 1.2, 0.8, 4.0  # a seam is over this, and over that of the cleanest copy by so much; its price
UPSCALED = 0.5  # price of being scaled up, beside the pixels
STEP, FINE = 1.0, 3.0  # price of the logarithm of the quantisation's step, beyond a step of about JPEG quality 85
ALIKE = 0.15  # copies no further from the best are as good; then the finest quantised, then the smallest file is kept
LOSSY = 5.0  # step of formats that do not tell theirs: about a JPEG of quality 80


class PictureQuality(NamedTuple):
    """Of one picture; logarithms are natural."""

    pixels: float  # logarithm of the pixels inside a uniform border
    detail: float  # logarithm of the finest detail over coarser detail, summed over two scales: lower when scaled up
    seam: float  # logarithm of the strongest straight line across the picture, over its surroundings
    step: float  # logarithm of the quantisation's step, the coarser of file's and pixels'; 0: none is known
    gray: float  # 1 where there is no colour in it
    size: float  # bytes of the file
    digest: float  # of the pixels: equal pictures have equal ones


def ranks(measured: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """A score [n] for pictures ``measured`` [n, fields of Quality]: the largest of each of ``groups`` [n] is the best.

    ``groups`` number the components of copies, from 0.
    """
    of = PictureQuality(*measured.T)
    count = int(groups.max(initial=-1)) + 1

    def best(values: NDArray[Any]) -> NDArray[np.float64]:
        """The largest of its group, for each picture."""
        most = np.full(count, -np.inf)
        np.maximum.at(most, groups, values)
        return most[groups]

    step = _of_equal_pixels(np.asarray(of.step), np.asarray(of.digest), groups)
    value = np.asarray(of.pixels, np.float64)
    lacks = best(np.asarray(of.detail)) - of.detail
    more = value - best(np.where(lacks == 0, value, -np.inf))  # than the sharpest has
    scaled = (more > ALIKE) & (lacks > SCALED * more)
    value = np.where(scaled, value - more - UPSCALED, value - SOFTER * np.maximum(0, lacks - SOFT) * (more <= ALIKE))
    value -= SEAMS * np.maximum(0, of.seam - np.maximum(SEAM, CLEAR - best(-np.asarray(of.seam))))
    value -= STEP * np.maximum(0, step - np.log(FINE)) + of.gray
    alike = value >= best(value) - ALIKE
    order = np.lexsort((np.asarray(of.size), np.round(5 * step), np.where(alike, 0, -value), ~alike))
    score = np.empty(len(order))
    score[order] = -np.arange(len(order))
    return score


def _of_equal_pixels(
    step: NDArray[np.float64], digest: NDArray[np.float64], groups: NDArray[np.int64]
) -> NDArray[np.float64]:
    """``step`` with the coarsest that any picture of the same pixels in the same group says: PNGs of a JPEG do not."""
    _, number = np.unique(np.stack([groups, digest]), axis=1, return_inverse=True)
    coarsest = np.zeros(int(number.max(initial=-1)) + 1)
    np.maximum.at(coarsest, number.ravel(), step)
    return np.asarray(coarsest[number.ravel()])


def measure(data: bytes, rgb: RGB) -> PictureQuality:
    """The quality of the picture ``rgb`` [H, W, 3] that the file ``data`` holds; its cost is bounded for any size."""
    import cv2

    gray: NDArray[np.uint8] = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
    top, bottom, left, right = content(gray)
    inside = gray[top:bottom, left:right]
    tiles = _tiles(inside)
    return PictureQuality(
        pixels=float(np.log(inside.size)),
        detail=_detail(tiles),
        seam=_seam(gray),
        step=float(np.log(max(1.0, _file_step(data), _left_step(gray)))),
        gray=float(_is_gray(rgb[top:bottom, left:right])),
        size=float(len(data)),
        digest=float(zlib.crc32(np.ascontiguousarray(rgb).data)),
    )


def content(gray: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what lies inside a uniform border of ``gray`` [H, W]; all of it where none is."""
    height, width = gray.shape
    top, bottom = _uniform(gray), height - _uniform(gray[::-1])
    across = gray[top:bottom].T
    left, right = _uniform(across), width - _uniform(across[::-1])
    return (top, bottom, left, right) if min(bottom - top, right - left) >= 16 else (0, height, 0, width)


def _uniform(lines: NDArray[np.uint8]) -> int:
    """How many of the first ``lines`` [n, m] are of one level, but for a few pixels."""
    step = max(1, lines.shape[1] // LINE)
    sampled = np.sort(lines[:, ::step].astype(np.int16), axis=1)
    few = min(max(1, sampled.shape[1] // 32), (sampled.shape[1] - 1) // 2)
    level = np.median(sampled[0])
    same = (np.abs(sampled[:, few] - level) <= LEVEL) & (np.abs(sampled[:, -1 - few] - level) <= LEVEL)
    count = int(np.argmin(same)) if not same.all() else len(same)
    return min(count, int(MOST_BORDER * len(lines)))


def _tiles(gray: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Evenly spread tiles of ``gray``, or all of it where that is no more."""
    height, width = gray.shape
    if gray.size <= TILES * TILES * TILE * TILE:
        return [gray.astype(np.float32)]
    h, w = min(TILE, height), min(TILE, width)
    tops = np.linspace(0, height - h, TILES).round().astype(int)
    lefts = np.linspace(0, width - w, TILES).round().astype(int)
    return [gray[top : top + h, left : left + w].astype(np.float32) for top in tops for left in lefts]


def _detail(tiles: list[NDArray[np.float32]]) -> float:
    """What is lost by scaling to 3/4 and to 1/2, over what is lost by scaling to 1/4 and to 1/8.

    The median over cells, of those that show something: text laid over a picture is in few of them.
    """
    fine, coarse = [], []
    for tile in tiles:
        lost = [np.log(_in_cells(_lost(tile, scale)) + 0.3) for scale in (0.75, 0.5, 0.25, 0.125)]
        fine.append(lost[0] + lost[1])
        coarse.append(lost[2] + lost[3])
    joined, below = np.concatenate(fine), np.concatenate(coarse)
    return float(np.median((joined - below)[below >= np.median(below)]))


def _in_cells(lost: NDArray[np.float32]) -> NDArray[np.float64]:
    """Means over cells of :data:`CELL` pixels a side, or over all where that is less."""
    side = min(CELL, *lost.shape)
    height, width = (length // side for length in lost.shape)
    cells = lost[: height * side, : width * side].reshape(height, side, width, side)
    return np.asarray(cells.mean((1, 3)).ravel(), np.float64)


def _lost(gray: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    import cv2

    height, width = gray.shape
    small = max(4, round(width * scale)), max(4, round(height * scale))
    again = cv2.resize(
        cv2.resize(gray, small, interpolation=cv2.INTER_AREA), (width, height), interpolation=cv2.INTER_CUBIC
    )
    return np.asarray(np.abs(gray - again))


def _seam(gray: NDArray[np.uint8]) -> float:
    """The strongest step between neighbouring lines that runs across most of the picture, either way."""
    best = 0.0
    for lines in (gray, gray.T):
        step = max(1, lines.shape[1] // LINE)
        jumps = np.abs(np.diff(lines[:, ::step].astype(np.int16), axis=0))
        if len(jumps) < 16:
            continue
        most = np.partition(jumps, jumps.shape[1] // 4, axis=1)[:, jumps.shape[1] // 4].astype(np.float32)
        around = np.lib.stride_tricks.sliding_window_view(np.pad(most, 6, mode="edge"), 13)
        usual = np.median(np.concatenate([around[:, :5], around[:, 8:]], axis=1), axis=1)
        best = max(best, float((most / (usual + 2))[2:-2].max()))
    return float(np.log(best + 0.5))


def _file_step(data: bytes) -> float:
    """The luma quantisation step of a JPEG's lowest frequencies (geometric mean); 1 of formats that lose nothing."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" or data[:2] in (b"BM", b"II", b"MM") or data[12:16] == b"VP8L":
        return 1.0
    if data[:2] != b"\xff\xd8":
        return LOSSY
    tables = jpeg_tables(data)
    if not tables:
        return LOSSY
    table = np.asarray(tables[min(tables)], np.float64).reshape(8, 8)
    return float(np.exp(np.log(np.maximum(table[_LOW], 1)).mean()))


_LOW = ((0, 1, 1, 0, 2), (1, 0, 1, 2, 0))  # frequencies, rows and columns


def _left_step(gray: NDArray[np.uint8], most: int = 1024) -> float:
    """The quantisation step that an earlier JPEG left in the pixels, on the same grid of blocks; 1: none to be seen.

    Coefficients of a picture that was quantised by a step lie near its multiples; the largest step that they lie near
    to is taken, frequency by frequency.
    """
    height, width = (side // 8 * 8 for side in gray.shape)
    if min(height, width) < 64:
        return 1.0
    blocks = gray[:height, :width].reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    levels = blocks[:: max(1, len(blocks) // most)].astype(np.float32) - 128
    k = np.arange(8)
    basis = np.cos(np.pi * (2 * k[None] + 1) * k[:, None] / 16) * np.where(k == 0, 0.125**0.5, 0.5)[:, None]
    found = np.einsum("fi,nij,fj->fn", basis[list(_LOW[0])], levels, basis[list(_LOW[1])], optimize=True)
    steps = np.arange(2, 41)
    left = []
    for values in found:
        phases = np.cos(2 * np.pi * values[None] / steps[:, None])
        far = np.abs(values)[None] > 0.6 * steps[:, None]
        enough = far.sum(1) >= 100
        near = np.where(enough, (phases * far).sum(1) / np.maximum(far.sum(1), 1), 0)
        good = np.flatnonzero(near > 0.7)
        left.append(float(steps[good[-1]]) if len(good) else 1.0)
    return float(np.exp(np.median(np.log(left))))


def _is_gray(rgb: RGB) -> bool:
    sampled: NDArray[Any] = rgb[:: max(1, len(rgb) // 128), :: max(1, rgb.shape[1] // 128)].astype(np.int16)
    return bool((sampled.max(2) - sampled.min(2)).mean() < 2)
