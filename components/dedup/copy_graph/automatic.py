"""A threshold for any pool, without a label: as low as the pool's own pictures allow.

Photographs that show different things lie far apart, and a threshold well below that of mild copies finds crops, too.
Pictures that all look alike (cells, scans, frames of a video) lie close together, and the same threshold would tie most
of them into one. So it rises until no more than a stated share of the images has a neighbour over it; but not above a
ceiling at which only copies are left, for a pool may hold more copies than that share.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from components.descriptors.rows import DescriptorRows
from components.neighbours import NeighbourParams, exact_knn
from components.params import Cosine, PositiveShare, Seed, Strict


class AutoParams(Strict):
    """The rule. The defaults were measured with the discriminant descriptor (docs/decisions.md)."""

    least_self: Cosine = 0.65  # no threshold among the pool's images below this cosine
    least_relative: Cosine = 0.55  # nor against held-out images, where a miss is a leak
    most: Cosine = 0.95  # nor any above: here only copies are left
    neighboured: PositiveShare = 0.1  # share of the images that may have a neighbour over the threshold
    images: int = Field(512, ge=2, le=100_000)  # drawn to measure it
    seed: Seed = 0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.least_relative <= self.least_self <= self.most:
            raise ValueError("expected least_relative <= least_self <= most")
        return self


class Automatic(NamedTuple):
    """The thresholds, and the share of the images drawn that have a neighbour over the first."""

    at_self: float
    at_relative: float
    neighboured: float
    images: int

    def line(self) -> str:
        """To print."""
        return (
            f"thresholds by the pool itself: {self.at_self:.4g} among its images, {self.at_relative:.4g} with held-out "
            f"ones; of {self.images:,} images drawn {self.neighboured:.1%} have a neighbour over the first"
        )


def automatic(rows: DescriptorRows, params: AutoParams, neighbours: NeighbourParams) -> Automatic:
    """The thresholds for the pool that ``rows`` describe. Costs one pass over the descriptors."""
    nearest = nearest_others(rows, params, neighbours)
    raised = float(np.quantile(nearest, 1 - params.neighboured, method="higher")) if len(nearest) else -1.0
    at_self = min(max(raised, params.least_self), params.most)
    # where pictures look alike, held-out ones do as well
    at_relative = params.least_relative if at_self == params.least_self else at_self
    over = float((nearest > at_self).mean()) if len(nearest) else 0.0
    return Automatic(at_self, at_relative, over, len(nearest))


def nearest_others(rows: DescriptorRows, params: AutoParams, neighbours: NeighbourParams) -> NDArray[np.float32]:
    """Cosine [n] of each image drawn to its nearest other image, windows included; empty for a pool of one."""
    flat, images = rows.flat(), rows.open()
    count, each, _ = images.shape
    if count < 2:
        return np.empty(0, np.float32)
    chosen = np.sort(np.random.default_rng(params.seed).permutation(count)[: params.images])
    similarity, found = exact_knn(flat, images[chosen, 0], min(each + 1, len(flat)), neighbours)
    others = np.where(found // each == chosen[:, None], -np.inf, similarity)
    return np.asarray(others.max(1), np.float32)
