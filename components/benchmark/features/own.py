"""What can be said of a network without a label: figures of its features of the user's own training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from components.benchmark.features.contenders import Contender
from components.evaluation.features.extract import Rows, extract
from components.images.decode import RGB
from components.learning.collapse import feature_figures
from components.params import Strict

LEAST = 2  # images: of one there is no spread


class OwnParams(Strict):
    """How many training images are looked at."""

    images: int = Field(512, ge=LEAST, le=100_000)  # evenly spread over the manifest


class InMemoryImages:
    """Pictures in memory, as :class:`components.evaluation.sets.labelled_set.Images`."""

    def __init__(self, pictures: Sequence[RGB]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def rgb(self, row: int) -> RGB:
        """Picture ``row``, uint8 [H, W, 3]."""
        return self._pictures[row]

    def bytes(self, row: int) -> bytes:
        """There are none: the pictures were decoded."""
        raise TypeError(f"picture {row} is pixels, not a file")


def figures(contenders: Sequence[Contender], images: Sequence[RGB], batch_size: int) -> dict[str, dict[str, float]]:
    """By network (raw pixels are none): ``feature_rank``, ``feature_std``, ``mean_cosine``, ``dimensions``."""
    extractors = {contender.name: contender.extractor for contender in contenders if contender.kind != "raw"}
    found = extract(extractors, InMemoryImages(images), batch_size, "features of own images")
    return {name: _figures(extractors[name].main(rows)) for name, rows in found.items()}


def table(found: Mapping[str, Mapping[str, float]], images: int) -> str:
    """:func:`figures` of so many images, to read."""
    heads = ["model", "rank", "of", "spread", "mean cosine"]
    rows = [
        [name, f"{one['feature_rank']:.1f}", f"{one['dimensions']:.0f}", f"{one['feature_std']:.2f}",
         f"{one['mean_cosine']:.2f}"]
        for name, one in found.items()
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [heads, *rows]]
    rule = "|".join("-" * (width + 2) for width in widths)
    return (
        f"### features of {images:,} of your own images, without labels\n\n"
        "Rank: directions that features use. Spread: 1 is even, 0 collapsed. Mean cosine: of two images.\n"
        "\n" + "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]) + "\n"
    )


def _figures(rows: Rows) -> dict[str, float]:
    import torch

    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    count = len(rows)
    together = float(np.square(unit.sum(0, dtype=np.float64)).sum())  # cosines of all pairs, each image with itself too
    known = {name: round(float(value), 4) for name, value in feature_figures(torch.from_numpy(rows)).items()}
    return known | {
        "mean_cosine": round((together - count) / (count * (count - 1)), 4),
        "dimensions": float(rows.shape[1]),
    }
