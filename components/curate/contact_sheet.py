"""One picture of what curation did: samples of the kept, of the blurred, and of the dropped by reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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


def choose(rows: Sequence[dict[str, Any]], show: Callable[[dict[str, Any]], RGB | None]) -> RGB:
    """The sheet for an index: ``show`` gives a row's picture, or None."""
    kept = [row for row in rows if not row["reason"] and not row["faces"]]
    spread = [kept[i] for i in np.linspace(0, len(kept) - 1, min(len(kept), 2 * COLUMNS)).astype(int)]
    blurred = [row for row in rows if not row["reason"] and row["faces"]]
    groups = [(f"kept ({len(kept):,})", spread), (f"kept with faces blurred ({len(blurred):,})", blurred[:COLUMNS])]
    for reason in sorted({row["reason"] for row in rows} - {""}):
        dropped = [row for row in rows if row["reason"] == reason]
        groups.append((f"dropped: {reason} ({len(dropped):,})", dropped[:COLUMNS]))
    return compose([(title, [show(row) for row in chosen]) for title, chosen in groups])
