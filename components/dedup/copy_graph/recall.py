"""How many of the copy graph's edges the coded index found: a sample of images searched exactly, in the run itself.

A model of the index (components/neighbours/factory.py) says what to expect of rows without structure; what these
descriptors came to is measured here. What counts is edges over the threshold, from either end, not neighbours by rank.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from components.dedup.copy_graph.edges import EdgeParts, Edges
from components.descriptors.rows import DescriptorRows
from components.neighbours import NeighbourParams, exact_knn, factory_for, lists_of


class EdgeRecall(NamedTuple):
    """Edges over the threshold of the images that were searched exactly."""

    images: int
    edges: int  # that exact search finds
    found: int  # of them, that the copy graph holds

    def report(self) -> dict[str, float | int]:
        """Entries of reports/dedup.json; without an edge there is no recall to state."""
        recall = {"edge_recall": round(self.found / self.edges, 4)} if self.edges else {}
        return {"edge_recall_images": self.images, "edge_recall_edges": self.edges} | recall


def measure_recall(
    rows: DescriptorRows, edges: EdgeParts, k: int, threshold: float, params: NeighbourParams
) -> EdgeRecall:
    """The recall of ``edges`` over ``threshold`` for ``params.recall_sample`` images of ``rows``, drawn by the seed.

    No images where the search was exact anyway. Costs one pass over the descriptors, and as many comparisons as there
    are descriptors for each image drawn.
    """
    flat, images = rows.flat(), rows.open()
    count, each, dim = images.shape
    if not params.recall_sample or not lists_of(factory_for(len(flat), dim, params, gpu=False)):
        return EdgeRecall(0, 0, 0)
    chosen = np.sort(np.random.default_rng(params.seed).permutation(count)[: params.recall_sample])
    similarity, found = exact_knn(flat, images[chosen, 0], min(k + each, len(flat)), params)
    others, own = found // each, np.broadcast_to(chosen[:, None], found.shape)
    strong = (similarity > threshold) & (others != own)
    wanted = Edges.of_wholes(own[strong], others[strong], similarity[strong]).canonical()
    asked = np.zeros(count, bool)
    asked[chosen] = True
    hit = np.zeros(len(wanted.a), bool)
    for block in edges:
        near = block.where(asked[block.a] | asked[block.b]).above(threshold - 1e-4)  # sums round
        hit |= np.isin(wanted.a * count + wanted.b, near.a * count + near.b)
    return EdgeRecall(len(chosen), len(hit), int(hit.sum()))
