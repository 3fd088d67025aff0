"""Choose the thresholds of the descriptor in use, by measurement: planted copies against pairs known to differ.

The paper's 0.6 and 0.45 belong to SSCD on photographs of the web. Another descriptor, or pictures that all look alike,
need their own. The rule: the lowest threshold (so the highest recall of copies) at which at most a stated share of
images has any neighbour above it that is known to be no copy.

Known to differ: two labelled images of a benchmark's training side whose labels differ and whose rows are at least
`apart` rows from each other. Held-out labels are never read. The distance in rows matters where neighbouring rows
show the same object again, as in elpv: cells of one module, cut from one ingot, are side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.dedup.copy_graph.copies import EDITS, planted
from components.descriptors.kinds import Descriptor
from components.descriptors.views import reduce
from components.errors import VitrailError
from components.images.samples import RGB
from components.params import Seed, Strict


class CalibrationParams(Strict):
    """What is measured and the rule that picks the thresholds."""

    copies: int = Field(300, ge=10, le=1_000_000)  # images copies are planted of, every kind of edit each
    benchmark: str  # whose training labels say which pairs differ
    apart: int = Field(100, ge=0, le=1_000_000)  # rows between two images known to differ
    least: float = Field(0.4, ge=-1, lt=1)  # no threshold below this cosine, however easy the pairs measured are
    false_match_self: float = Field(0.02, gt=0, lt=1)  # images with a false neighbour allowed in self-dedup
    false_match_relative: float = Field(0.05, gt=0, lt=1)  # and against held-out images, where recall matters more
    seed: Seed = 0


@dataclass(frozen=True)
class Calibration:
    """Similarities measured and thresholds chosen."""

    copies: dict[str, NDArray[np.float32]]  # kind of edit -> cosine of each copy to its original
    differing: NDArray[np.float32]  # per image: cosine to the nearest image known to differ
    nearest: NDArray[np.float32]  # per image: cosine to the nearest other image, whatever it shows
    threshold_self: float
    threshold_relative: float

    def summary(self) -> dict[str, Any]:
        """As calibration.json holds it."""

        def shares(threshold: float) -> dict[str, Any]:
            return {
                "threshold": round(threshold, 4),
                "recall": {kind: round(float((cosine > threshold).mean()), 4) for kind, cosine in self.copies.items()},
                "false_match": round(float((self.differing > threshold).mean()), 4),
                "nearest_other_above": round(float((self.nearest > threshold).mean()), 4),
            }

        return {
            "self": shares(self.threshold_self),
            "relative": shares(self.threshold_relative),
            "copies_per_kind": len(next(iter(self.copies.values()))),
            "images_known_to_differ": len(self.differing),
        }

    def table(self) -> str:
        """The same, to read."""
        summary = self.summary()
        width = max(map(len, self.copies))
        lines = [f"{'':{width}}  self > {self.threshold_self:.3f}  relative > {self.threshold_relative:.3f}"]
        for kind in self.copies:
            lines.append(
                f"{kind:{width}}  {summary['self']['recall'][kind]:12.1%}  {summary['relative']['recall'][kind]:16.1%}"
            )
        for name, words in (("false_match", "known to differ"), ("nearest_other_above", "any other image")):
            lines.append(f"{words:{width}}  {summary['self'][name]:12.1%}  {summary['relative'][name]:16.1%}")
        return "\n".join(lines)


def copy_similarities(
    pictures: Sequence[RGB], originals: NDArray[Any], descriptor: Descriptor, generator: np.random.Generator
) -> dict[str, NDArray[np.float32]]:
    """Cosine [n] of each of n ``pictures`` to its planted copy, by kind; ``originals`` [n, R, d] describe them."""
    found = {}
    for kind in EDITS:
        copies = (reduce(planted(picture, kind, generator), descriptor.side) for picture in pictures)
        embedded = descriptor.embed([descriptor.prepare(copy) for copy in copies])
        found[kind] = np.einsum("nrd,nd->nr", np.asarray(originals, np.float32), embedded).max(1)
    return found


def nearest_differing(
    descriptors: NDArray[Any], labels: Mapping[str, NDArray[np.int64]], rows: NDArray[np.int64], apart: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per image [n]: cosine to the nearest image known to differ, and to the nearest other image of any kind.

    Args:
        descriptors: [n, R, d], unit length, of each image's views; either image of a pair may be the crop.
        labels: task -> [n]; one label that differs is enough.
        rows: [n], each image's row in its benchmark.
        apart: rows that must lie between.

    Raises:
        VitrailError: no pair is known to differ.
    """
    unit = np.asarray(descriptors, np.float32)
    count, each, dim = unit.shape
    whole = np.ascontiguousarray(unit[:, 0])
    stacked = np.stack([np.asarray(labels[task]) for task in sorted(labels)], 1)  # [n, tasks]
    differing = np.full(count, -np.inf, np.float32)
    nearest = np.full(count, -np.inf, np.float32)
    for start in range(0, count, 128):
        block = slice(start, start + 128)
        cosine = (unit[block].reshape(-1, dim) @ whole.T).reshape(-1, each, count).max(1)  # [b, n]
        own = np.arange(count)[block]
        cosine[np.arange(len(own)), own] = -np.inf
        known = (stacked[block, None] != stacked[None]).any(2) & (abs(rows[block, None] - rows[None]) >= apart)
        distinct = np.where(known, cosine, -np.inf)
        # Both images of a pair are told of it, for either may be the crop.
        for best, matrix in ((nearest, cosine), (differing, distinct)):
            np.maximum(best, matrix.max(0), out=best)
            best[block] = np.maximum(best[block], matrix.max(1))
    found = np.isfinite(differing)
    if not found.any():
        raise VitrailError(
            f"calibration: no two of the {len(unit)} training images have different labels and lie {apart} rows apart; "
            "lower calibration.apart, or set calibration to null and give thresholds"
        )
    return differing[found], nearest


def calibrate(
    copies: dict[str, NDArray[np.float32]],
    differing: NDArray[np.float32],
    nearest: NDArray[np.float32],
    params: CalibrationParams,
) -> Calibration:
    """Apply the rule of this module's head to what was measured."""
    at_self, at_relative = (
        max(params.least, float(np.quantile(differing, 1 - share, method="higher")))
        for share in (params.false_match_self, params.false_match_relative)
    )
    return Calibration(copies, differing, nearest, max(at_self, at_relative), at_relative)
