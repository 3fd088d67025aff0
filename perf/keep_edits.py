"""Files that re-publishers make of a picture, by script: of each the original should be kept, not the copy.

Drawn for ``perf.keep`` and the test of ``graph.keep: quality``. Pictures are uint8 RGB [H, W, 3].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from perf import attacks
from perf.attacks import RGB

LANCZOS, CUBIC, LINEAR, AREA = 4, 2, 1, 3  # cv2's numbers of its interpolations


def jpeg(rgb: RGB, quality: int) -> bytes:
    """``rgb`` as JPEG."""
    from components.images.decode import encode_jpeg

    return encode_jpeg(rgb, quality)


def png(rgb: RGB) -> bytes:
    """``rgb`` as PNG."""
    import cv2

    return bytes(cv2.imencode(".png", rgb[..., ::-1])[1])


def webp(rgb: RGB, quality: int) -> bytes:
    """``rgb`` as lossy WebP."""
    import cv2

    return bytes(cv2.imencode(".webp", rgb[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])[1])


def decoded(data: bytes) -> RGB:
    """The picture of a file."""
    import cv2

    return np.ascontiguousarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


def scaled(rgb: RGB, factor: float, how: int) -> RGB:
    """``rgb`` scaled by ``factor``."""
    import cv2

    size = max(8, round(rgb.shape[1] * factor)), max(8, round(rgb.shape[0] * factor))
    return np.asarray(cv2.resize(rgb, size, interpolation=how), np.uint8)


def crop(rgb: RGB, keep: float, generator: np.random.Generator) -> RGB:
    """A part of ``rgb`` that keeps ``keep`` of each side, anywhere."""
    h, w = (round(side * keep) for side in rgb.shape[:2])
    top, left = generator.integers(0, rgb.shape[0] - h + 1), generator.integers(0, rgb.shape[1] - w + 1)
    return rgb[top : top + h, left : left + w]


def bordered(rgb: RGB, generator: np.random.Generator, tall: float = 0.0, wide: float = 0.0) -> RGB:
    """``rgb`` in a border of one level: of 5 to 12 % all round, or of ``tall`` and ``wide`` of its sides."""
    import cv2

    around = max(3, int(generator.uniform(0.05, 0.12) * max(rgb.shape[:2])))
    rows, columns = (round(tall * rgb.shape[0]), round(wide * rgb.shape[1])) if tall or wide else (around, around)
    level = int(generator.choice([0, 255, 40, 230]))
    return np.asarray(
        cv2.copyMakeBorder(rgb, rows, rows, columns, columns, cv2.BORDER_CONSTANT, value=(level,) * 3), np.uint8
    )


def framed(rgb: RGB, generator: np.random.Generator) -> RGB:
    """``rgb`` with a thin line of a colour, then a border."""
    import cv2

    colour = tuple(int(level) for level in generator.integers(0, 256, 3))
    return bordered(np.asarray(cv2.copyMakeBorder(rgb, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=colour)), generator)


def collage(rgb: RGB, others: list[RGB], cells: int, generator: np.random.Generator) -> RGB:
    """``rgb`` at full size as one of 2 or 4 pictures of a page."""
    import cv2

    height, width = rgb.shape[:2]
    chosen = [others[int(i)] for i in generator.integers(0, len(others), cells - 1)]
    tiles = [np.asarray(cv2.resize(one, (width, height), interpolation=AREA), np.uint8) for one in chosen]
    tiles.insert(int(generator.integers(cells)), rgb)
    if cells == 2:
        return np.concatenate(tiles, int(generator.integers(2)))
    return np.concatenate([np.concatenate(tiles[:2], 1), np.concatenate(tiles[2:], 1)], 0)


def sharpened(rgb: RGB) -> RGB:
    """``rgb`` with 0.7 of what a blur of 1.5 pixels takes away added."""
    import cv2

    blurred = cv2.GaussianBlur(rgb, (0, 0), 1.5).astype(np.float32)
    return np.asarray(np.clip(1.7 * rgb - 0.7 * blurred, 0, 255), np.uint8)


def turned(rgb: RGB, degrees: float) -> RGB:
    """``rgb`` turned about its centre within its size, corners black."""
    import cv2

    height, width = rgb.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return np.asarray(cv2.warpAffine(rgb, matrix, (width, height)), np.uint8)


def edits(rgb: RGB, others: list[RGB], generator: np.random.Generator) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, file) of every copy made of ``rgb``; ``others`` are pictures that fill collages.

    Files are saved again at JPEG qualities of 55 to 85 where the name gives none.
    """
    import cv2

    def again(picture: RGB) -> bytes:
        return jpeg(picture, int(generator.integers(55, 86)))

    for quality in (10, 30, 50, 75, 85):
        yield f"JPEG {quality}", lambda quality=quality: jpeg(rgb, quality)
    yield "PNG of JPEG 60", lambda: png(decoded(jpeg(rgb, 60)))
    yield "JPEG 95 of JPEG 30", lambda: jpeg(decoded(jpeg(rgb, 30)), 95)
    yield "WebP 50", lambda: webp(rgb, 50)
    for factor in (0.5, 0.75, 0.9):
        yield f"scaled by {factor}", lambda factor=factor: jpeg(scaled(rgb, factor, AREA), 90)
    yield "scaled by 1.25", lambda: again(scaled(rgb, 1.25, CUBIC))
    yield "scaled by 1.5", lambda: jpeg(scaled(rgb, 1.5, LINEAR), 95)
    yield "scaled by 2", lambda: again(scaled(rgb, 2, LANCZOS))
    yield "scaled by 2, PNG", lambda: png(scaled(rgb, 2, CUBIC))
    yield "scaled by 0.5 and back", lambda: jpeg(scaled(scaled(rgb, 0.5, AREA), 2, CUBIC), 95)
    yield "cropped to 0.9", lambda: again(crop(rgb, 0.9, generator))
    yield "cropped to 0.7", lambda: jpeg(crop(rgb, 0.7, generator), 95)
    yield "cropped to 0.7, scaled back", lambda: jpeg(scaled(crop(rgb, 0.7, generator), 1 / 0.7, CUBIC), 90)
    yield "border", lambda: again(bordered(rgb, generator))
    yield "border, PNG", lambda: png(bordered(rgb, generator))
    yield "border, scaled by 1.3", lambda: again(scaled(bordered(rgb, generator), 1.3, CUBIC))
    yield "frame", lambda: again(framed(rgb, generator))
    yield "letterbox", lambda: again(bordered(rgb, generator, tall=0.2))
    yield "pillarbox", lambda: again(bordered(rgb, generator, wide=0.25))
    yield "collage of 2", lambda: again(collage(rgb, others, 2, generator))
    yield "collage of 4", lambda: again(collage(rgb, others, 4, generator))
    yield "collage of 4, scaled by 0.6", lambda: jpeg(scaled(collage(rgb, others, 4, generator), 0.6, AREA), 90)
    yield "screenshot", lambda: again(attacks.screenshot(rgb, others, generator))
    yield "text", lambda: again(attacks.text(rgb, others, generator))
    yield "emoji", lambda: again(attacks.emoji(rgb, others, generator))
    yield "blur", lambda: jpeg(np.asarray(cv2.GaussianBlur(rgb, (0, 0), 1), np.uint8), 95)
    yield "sharpened", lambda: again(sharpened(rgb))
    gray = np.repeat(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    yield "gray", lambda: jpeg(np.asarray(gray, np.uint8), 95)
    yield "colours", lambda: again(attacks.colour(rgb, others, generator))
    yield "mirrored", lambda: again(np.ascontiguousarray(rgb[:, ::-1]))
    yield "turned by 5 degrees", lambda: again(turned(rgb, 5))
    yield "turned by 90 degrees", lambda: again(np.ascontiguousarray(np.rot90(rgb)))
