"""Weighted nearest-neighbour classification of frozen features (Wu et al. 2018, as used by DINO and DINOv2).

The order of the training rows changes nothing, not even where features are equal: rows are sorted by their features
first, and equal ones share the votes that are left for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.errors import VitrailError
from components.evaluation.features.labelled_features import LabelledFeatures

BLOCK = 1 << 26  # similarities held at once (256 MiB in fp32)


def knn_predict(
    train: LabelledFeatures,
    test: npt.NDArray[np.floating],
    k: int,
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> npt.NDArray[np.int64]:
    """The class of each row of ``test`` [M, D] by vote of its ``k`` nearest of the N rows of ``train``; [M].

    Neighbours are nearest by cosine and vote with exp(cosine / temperature). ``k`` above N means all of N. Where m
    rows with the same features are the next nearest and only r < m may still vote, each of them has r/m of a vote. Of
    equal votes the smallest class number wins.
    """
    return knn_predict_each(train, test, [k], temperature, device)[k]


def knn_predict_each(
    train: LabelledFeatures,
    test: npt.NDArray[np.floating],
    ks: Sequence[int],
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> dict[int, npt.NDArray[np.int64]]:
    """:func:`knn_predict` for several ``ks`` from one search.

    The weights are a softmax over the neighbours found for the largest k, not normalised again for smaller ones: it
    does not change which class wins.

    Raises:
        VitrailError: shapes that do not fit, or features that are not finite.
    """
    empty = torch.empty(0, dtype=torch.int64)
    found = Bank.of(train, device).votes(test, ks, temperature)
    blocks = [[one.argmax(1).cpu() for one in votes] for votes in found]
    return {k: torch.cat([empty, *[block[number] for block in blocks]]).numpy() for number, k in enumerate(ks)}


@dataclass(frozen=True)
class Bank:
    """Training rows made ready for many searches: U different features, each with the labels of its rows."""

    features: Tensor  # [U, D], unit length, sorted
    counts: Tensor  # [U]: rows of each
    starts: Tensor  # [U]: where the labels of each begin in `labels`
    kinds: Tensor  # [U]: how many different labels each has
    labels: Tensor  # [L]: the labels of one feature after another, rising
    shares: Tensor  # [L]: of that feature's rows
    classes: int  # the largest label + 1

    @staticmethod
    def of(train: LabelledFeatures, device: torch.device | str = "cpu") -> Bank:
        """Of ``train``.

        Raises:
            VitrailError: no rows, or features that are not finite.
        """
        if not len(train):
            raise VitrailError("kNN: 0 training features; there must be at least 1")
        rows = _unit(train.features, "training", device)
        known = torch.as_tensor(np.asarray(train.labels, np.int64), device=device)
        features, group, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
        classes = int(known.max()) + 1
        pairs, of_pair = torch.unique(group * classes + known, return_counts=True)  # rising: by feature, then by label
        owner = pairs // classes
        kinds = torch.bincount(owner, minlength=len(features))
        shares = of_pair / counts[owner]
        return Bank(features, counts, kinds.cumsum(0) - kinds, kinds, pairs % classes, shares, classes)

    def votes(
        self, test: npt.NDArray[np.floating], ks: Sequence[int], temperature: float = 0.07
    ) -> Iterator[list[Tensor]]:
        """Block by block of ``test`` [M, D]: the votes [rows, classes] for each of ``ks``; the largest k's sum to 1."""
        if test.ndim != 2 or self.features.shape[1] != test.shape[1]:
            raise VitrailError(f"kNN: train {tuple(self.features.shape)} and test {test.shape} do not fit")
        if min(ks) < 1:
            raise VitrailError(f"kNN: k of {min(ks)}; it must be at least 1")
        queries = _unit(test, "test", self.features.device)
        rows = max(1, BLOCK // len(self.features))
        for start in range(0, len(queries), rows):
            yield self._block(queries[start : start + rows], ks, temperature)

    def _block(self, queries: Tensor, ks: Sequence[int], temperature: float) -> list[Tensor]:
        most = max(ks)
        cosines, near = (queries @ self.features.T).topk(min(most, len(self.features)), dim=1)
        counts = self.counts[near]
        before = counts.cumsum(1) - counts
        weights = (cosines / temperature).softmax(1)  # of one row each
        weights = weights / (weights * (most - before).clamp(min=0).minimum(counts)).sum(1, keepdim=True)
        kinds = self.kinds[near]
        deepest = int(kinds.max()) if kinds.numel() else 0
        found = []
        for k in ks:
            taken = weights * (k - before).clamp(min=0).minimum(counts)
            votes = torch.zeros(len(near), self.classes, device=near.device)
            for number in range(deepest):
                at = self.starts[near] + number
                at = torch.where(kinds > number, at, self.starts[near])
                part = torch.where(kinds > number, taken * self.shares[at], 0.0)
                votes.scatter_add_(1, self.labels[at], part)
            found.append(votes)
        return found


def _unit(features: npt.NDArray[np.floating], side: str, device: torch.device | str) -> Tensor:
    rows = torch.as_tensor(np.ascontiguousarray(features, np.float32), device=device)
    if not torch.isfinite(rows).all():
        raise VitrailError(f"kNN: {side} features hold NaN or infinity; the checkpoint they come from has diverged")
    return torch.nn.functional.normalize(rows, dim=1) + 0.0  # -0 and 0 are one feature
