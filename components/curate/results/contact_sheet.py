"""One picture of what curation did: samples of the kept, of the blurred, and of the dropped by reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.images.decode import RGB

TILE, COLUMNS, _TITLE = 96, 12, 18


def compose(groups: Sequence[tuple[str, Sequence[RGB | None]]]) -> RGB:
    """uint8 ``[H, W, 3]``: a titled row of tiles a group; None is a picture that cannot or shall not be shown."""
    from PIL import Image, ImageDraw

    # A group with nothing to show is its title alone.
    groups = [(title, images if any(rgb is not None for rgb in images) else ()) for title, images in groups]
    rows = sum(-(-len(images) // COLUMNS) for _, images in groups)
    sheet = Image.new("RGB", (COLUMNS * TILE, max(1, rows * TILE + len(groups) * _TITLE)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for title, images in groups:
        draw.text((4, top + 2), title, fill="black")
        top += _TITLE
        for place, rgb in enumerate(images):
            left, down = place % COLUMNS * TILE, top + place // COLUMNS * TILE
            if rgb is None:
                draw.rectangle((left + 2, down + 2, left + TILE - 3, down + TILE - 3), fill="lightgray")
                draw.text((left + 20, down + 40), "not shown", fill="gray")
                continue
            tile = Image.fromarray(rgb)
            tile.thumbnail((TILE - 4, TILE - 4))
            sheet.paste(tile, (left + 2, down + 2))
        top += -(-len(images) // COLUMNS) * TILE
    return np.asarray(sheet)


def groups(counts: dict[str, int], plain: int, blurred: int) -> list[tuple[str, str]]:
    """(name, title) of the sheet's groups: "plain" and "blurred" of the kept, and each reason with its ``counts``."""
    kept = [("plain", f"kept ({plain:,})"), ("blurred", f"kept with faces blurred ({blurred:,})")]
    return kept + [(reason, f"dropped: {reason} ({count:,})") for reason, count in sorted(counts.items())]


def spread_over(count: int) -> list[int]:
    """Which of ``count`` kept images are shown: some from everywhere."""
    return [int(i) for i in np.linspace(0, count - 1, min(count, 2 * COLUMNS)).astype(int)]
