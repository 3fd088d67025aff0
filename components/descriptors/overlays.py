"""Text and emoji laid over pictures, drawn from the DejaVu fonts that matplotlib ships: nothing to download.

An emoji here is a glyph (a face, a heart, an umbrella) whose outline is filled with a colour and whose lines are drawn
in another. Pictures are uint8 RGB [H, W, 3]; every function takes a generator.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.descriptors.train_params import OverlayParams
from components.images.samples import RGB

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono")
# Latin, Greek and Cyrillic letters, digits and marks: what the fonts draw and captions are made of
LETTERS = "".join(
    [
        *map(chr, range(0x21, 0x7F)),
        *map(chr, range(0xC0, 0x100)),
        *map(chr, range(0x3B1, 0x3CA)),
        *map(chr, range(0x410, 0x450)),
    ]
)
GLYPHS = (
    "".join(chr(code) for code in range(0x1F600, 0x1F641) if code not in (0x1F624, 0x1F62C))
    + "☀☁☂☎☘☠☢☮☯☺☻♚♞♠♣♥♦♫⚑⚓⚡✂✈✉✌✎✓✗✪✿❄❤➤🐭🐮🐱🐵"
)
DRAWN = 64  # pixels that glyphs are drawn at, once; each use is scaled from there
_drawing = threading.Lock()  # FreeType's faces are not to be used by two threads at once


def overlay(rgb: RGB, params: OverlayParams, generator: np.random.Generator) -> RGB:
    """``rgb`` with a line of text and an emoji, each by its probability."""
    height = rgb.shape[0]
    if generator.random() < params.text:
        line = "".join(generator.choice(list(LETTERS + " " * 20), int(generator.integers(4, 17))))
        mask = text_mask(line.strip() or "-", FONTS[generator.integers(len(FONTS))])
        mask = _scaled(mask, height * generator.uniform(*params.text_size))
        rgb = paste(rgb, mask[..., None], _colour(generator), generator.uniform(*params.text_opacity), generator)
    if generator.random() < params.emoji:
        fill, lines = emoji_masks(GLYPHS[generator.integers(len(GLYPHS))])
        side = height * generator.uniform(*params.emoji_size)
        fill, lines = _scaled(fill, side), _scaled(lines, side)
        faces = np.array([255, 204, 50]) if generator.random() < 0.5 else _colour(generator)  # mostly they are yellow
        pixels = faces + (_colour(generator) // 3 - faces) * (lines[..., None] / 255)  # dark lines on the fill
        rgb = paste(rgb, fill[..., None], pixels, generator.uniform(*params.emoji_opacity), generator)
    return rgb


def paste(
    rgb: RGB, mask: NDArray[np.uint8], colour: NDArray[Any], opacity: float, generator: np.random.Generator
) -> RGB:
    """``colour`` ([3], or [h, w, 3]) over ``rgb`` where ``mask`` [h, w, 1] (0 to 255) is, somewhere in the picture.

    What is wider or higher than the picture is cut off at its edges.
    """
    (height, width), (h, w) = rgb.shape[:2], mask.shape[:2]
    top = int(generator.integers(min(0, height - h), max(0, height - h) + 1))
    left = int(generator.integers(min(0, width - w), max(0, width - w) + 1))
    rows, columns = slice(max(0, top), min(height, top + h)), slice(max(0, left), min(width, left + w))
    inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    weight = mask[inside] * np.float32(opacity / 255)
    over = np.asarray(colour, np.float32)
    over = over[inside] if over.ndim == 3 else over
    out = rgb.copy()
    below = out[rows, columns].astype(np.float32)
    out[rows, columns] = np.rint(below + weight * (over - below)).clip(0, 255).astype(np.uint8)
    return out


def text_mask(line: str, font: str) -> NDArray[np.uint8]:
    """[h, w] coverage, 0 to 255, of ``line``, tightly cut."""
    with _drawing:
        mask, (width, height) = _face(font).getmask2(line, mode="L")[0], (0, 0)
        width, height = mask.size
        drawn = np.frombuffer(bytes(mask), np.uint8).reshape(height, width)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    if not len(rows):
        return np.full((DRAWN // 8, DRAWN), 255, np.uint8)  # a glyph without ink: a bar
    return drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@lru_cache(maxsize=256)
def emoji_masks(glyph: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two [h, w] coverages of ``glyph``: its outline filled, and its lines."""
    import cv2

    lines = np.ascontiguousarray(text_mask(glyph, "DejaVuSans"))
    contours, _ = cv2.findContours((lines > 64).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    fill = np.zeros_like(lines)
    cv2.drawContours(fill, contours, -1, 255, cv2.FILLED)
    return np.maximum(fill, lines), lines


@lru_cache(maxsize=len(FONTS))
def _face(font: str) -> Any:
    from pathlib import Path

    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{font}.ttf"), DRAWN)


def _scaled(mask: NDArray[np.uint8], height: float) -> NDArray[np.uint8]:
    import cv2

    h = max(2, round(height))
    size = max(1, round(mask.shape[1] * h / mask.shape[0])), h
    how = cv2.INTER_AREA if h < mask.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(mask, size, interpolation=how), np.uint8)


def _colour(generator: np.random.Generator) -> NDArray[np.int64]:
    return generator.integers(0, 256, 3)
