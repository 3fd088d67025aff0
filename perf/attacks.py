"""What re-publishers do to photographs, by script: the queries of ``perf.copies``.

Drawn with other fonts, shapes and code than the edits a network learns from, so that none is tested on what it saw.
Pictures are uint8 RGB [H, W, 3].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

RGB = npt.NDArray[np.uint8]
Attack = Callable[[RGB, list[RGB], np.random.Generator], RGB]
CAPTION = "SUNDAY SALE 30 % OFF / when you see it / follow for more / photo by a friend / BREAKING NEWS / c'est la vie"


def jpeg(rgb: RGB, _: list[RGB], generator: np.random.Generator) -> RGB:
    """JPEG of quality 5 to 30."""
    import cv2

    _, data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, int(generator.integers(5, 31))])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def scale(rgb: RGB, _: list[RGB], generator: np.random.Generator) -> RGB:
    """A fifth to a half of the size, and another aspect by up to 1.2."""
    import cv2

    factor, stretch = generator.uniform(0.2, 0.5), generator.uniform(1 / 1.2, 1.2)
    size = round(rgb.shape[1] * factor * stretch), round(rgb.shape[0] * factor)
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def crop(rgb: RGB, _: list[RGB], generator: np.random.Generator) -> RGB:
    """A third of the area, of the same aspect, anywhere."""
    h, w = (round(side * 3**-0.5) for side in rgb.shape[:2])
    top, left = generator.integers(0, rgb.shape[0] - h + 1), generator.integers(0, rgb.shape[1] - w + 1)
    return rgb[top : top + h, left : left + w]


def rotation(rgb: RGB, _: list[RGB], generator: np.random.Generator) -> RGB:
    """5 to 30 degrees either way, corners black; one in five is a quarter turn instead."""
    import cv2

    if generator.random() < 0.2:
        return np.ascontiguousarray(np.rot90(rgb, int(generator.choice([1, 3]))))
    degrees = generator.uniform(5, 30) * generator.choice([-1, 1])
    height, width = rgb.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return np.asarray(cv2.warpAffine(rgb, matrix, (width, height)), np.uint8)


def text(rgb: RGB, _: list[RGB], generator: np.random.Generator) -> RGB:
    """Two captions in outlined capitals across the picture, as on a meme."""
    import cv2

    out = rgb.copy()
    for _ in range(2):
        words = str(generator.choice(CAPTION.split(" / ")))
        height = rgb.shape[0] * generator.uniform(0.08, 0.2)
        face = int(generator.choice([cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX]))
        at = int(generator.uniform(0, 0.2) * rgb.shape[1]), int(generator.uniform(0.2, 1.0) * rgb.shape[0])
        thick = max(1, round(height / 12))
        colour = tuple(int(level) for level in generator.integers(0, 256, 3))
        cv2.putText(out, words, at, face, height / 30, (0, 0, 0), 3 * thick, cv2.LINE_AA)
        cv2.putText(out, words, at, face, height / 30, colour, thick, cv2.LINE_AA)
    return out


def emoji(rgb: RGB, _: list[RGB], generator: np.random.Generator) -> RGB:
    """One to three smiling faces, each a fifth to a half of the picture's height."""
    import cv2

    out = rgb.copy()
    for _ in range(int(generator.integers(1, 4))):
        radius = int(rgb.shape[0] * generator.uniform(0.1, 0.25))
        x, y = int(generator.uniform(0, rgb.shape[1])), int(generator.uniform(0, rgb.shape[0]))
        colour = tuple(int(level) for level in generator.integers((200, 150, 0), (256, 230, 120)))
        eye, line = max(1, radius // 7), max(1, radius // 10)
        cv2.circle(out, (x, y), radius, colour, cv2.FILLED, cv2.LINE_AA)
        for side in (-1, 1):
            cv2.circle(out, (x + side * radius // 3, y - radius // 4), eye, (60, 30, 10), cv2.FILLED, cv2.LINE_AA)
        cv2.ellipse(out, (x, y + radius // 8), (radius // 2, radius // 2), 0, 20, 160, (60, 30, 10), line, cv2.LINE_AA)
    return out


def collage(rgb: RGB, others: list[RGB], generator: np.random.Generator) -> RGB:
    """One of the two halves, or one of the four quarters, of a page of photographs."""
    import cv2

    cells = int(generator.choice([2, 4]))
    height, width = 256, 256 if cells == 4 else 160
    chosen = [others[i] for i in generator.choice(len(others), cells - 1, replace=False)]
    chosen.insert(int(generator.integers(cells)), rgb)
    tiles = [np.asarray(cv2.resize(one, (width, height), interpolation=cv2.INTER_AREA), np.uint8) for one in chosen]
    rows = [np.concatenate(tiles[start : start + 2], 1) for start in range(0, cells, 2)]
    return np.concatenate(rows, 0)


def screenshot(rgb: RGB, _: list[RGB], generator: np.random.Generator) -> RGB:
    """The picture in an application's window: margins, a bar above, lines of text below; JPEG 70."""
    import cv2

    height, width = rgb.shape[:2]
    above, below = int(height * generator.uniform(0.1, 0.3)), int(height * generator.uniform(0.2, 0.6))
    side = int(width * generator.uniform(0.0, 0.2))
    page = np.full((height + above + below, width + 2 * side, 3), int(generator.choice([18, 245, 255])), np.uint8)
    page[: above * 2 // 3] = generator.integers(0, 256, 3)
    page[above : above + height, side : side + width] = rgb
    ink = 0 if page[-1, -1, 0] > 128 else 230
    for line in range(above + height + 16, len(page) - 4, 16):
        words = "".join(generator.choice(list("etaoinshrdlu  "), width // 8))
        cv2.putText(page, words, (side + 4, line), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (ink, ink, ink), 1, cv2.LINE_AA)
    _, data = cv2.imencode(".jpg", page, [cv2.IMWRITE_JPEG_QUALITY, 70])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def colour(rgb: RGB, _: list[RGB], generator: np.random.Generator) -> RGB:
    """Gray, sepia-like mixing of channels, or strong contrast, brightness and gamma of each channel by itself."""
    levels = rgb.astype(np.float32) / 255
    if generator.random() < 0.25:
        levels = np.repeat(levels.mean(2, keepdims=True), 3, 2)
    elif generator.random() < 0.33:
        levels = levels @ (np.eye(3) + generator.uniform(-0.5, 0.5, (3, 3))).astype(np.float32)
    gamma, gain = np.exp(generator.uniform(-0.7, 0.7, 3)), generator.uniform(0.6, 1.4)
    shifted = gain * levels.clip(0, 1) ** gamma + generator.uniform(-0.2, 0.2)
    return (shifted * 255).clip(0, 255).astype(np.uint8)


ATTACKS: dict[str, Attack] = {
    "JPEG 5-30": jpeg,
    "scale 0.2-0.5": scale,
    "crop to a third": crop,
    "rotation": rotation,
    "text": text,
    "emoji": emoji,
    "collage of 2 or 4": collage,
    "screenshot": screenshot,
    "colour": colour,
}
