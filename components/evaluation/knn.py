"""Weighted nearest-neighbour classification of frozen features (Wu et al. 2018, as used by DINO and DINOv2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.errors import VitrailError

BLOCK = 1 << 26  # similarities held at once (256 MiB in fp32)


def knn_predict(
    train: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    test: npt.NDArray[np.floating],
    k: int,
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> npt.NDArray[np.int64]:
    """The class of each row of ``test`` [M, D] by vote of its ``k`` nearest rows of ``train`` [N, D]; [M].

    Neighbours are nearest by cosine and vote with exp(cosine / temperature). ``k`` above N means all of N.
    """
    return knn_predict_each(train, labels, test, [k], temperature, device)[k]


def knn_predict_each(
    train: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
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
    blocks = [[one.argmax(1).cpu() for one in votes] for votes in _votes(train, labels, test, ks, temperature, device)]
    return {k: torch.cat([empty, *[block[number] for block in blocks]]).numpy() for number, k in enumerate(ks)}


def knn_votes(
    train: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    test: npt.NDArray[np.floating],
    k: int,
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> npt.NDArray[np.float32]:
    """The votes that :func:`knn_predict` counts, [M, classes]; classes end at the largest label, a row sums to 1."""
    parts = [votes[0].cpu() for votes in _votes(train, labels, test, [k], temperature, device)]
    votes: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return votes


def _votes(
    train: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    test: npt.NDArray[np.floating],
    ks: Sequence[int],
    temperature: float,
    device: torch.device | str,
) -> Iterator[list[Tensor]]:
    """Block by block of ``test``: the votes [rows, classes] for each of ``ks``."""
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or len(train) != len(labels):
        raise VitrailError(f"kNN: train {train.shape}, labels {np.shape(labels)} and test {test.shape} do not fit")
    if not len(train) or min(ks) < 1:
        raise VitrailError(f"kNN: {len(train)} training features and k of {min(ks)}; both must be at least 1")
    bank, queries = _unit(train, "training", device), _unit(test, "test", device)
    votes_for = torch.as_tensor(np.asarray(labels, np.int64), device=device)
    classes = int(votes_for.max()) + 1
    most = min(max(ks), len(bank))
    rows = max(1, BLOCK // len(bank))
    for start in range(0, len(queries), rows):
        cosines, neighbours = (queries[start : start + rows] @ bank.T).topk(most, dim=1)
        weights = (cosines / temperature).softmax(1)  # [rows, most]
        voted = votes_for[neighbours]
        found = []
        for k in ks:
            votes = torch.zeros(len(voted), classes, device=device)
            votes.scatter_add_(1, voted[:, :k], weights[:, :k])
            found.append(votes)
        yield found


def _unit(features: npt.NDArray[np.floating], side: str, device: torch.device | str) -> Tensor:
    rows = torch.as_tensor(np.ascontiguousarray(features, np.float32), device=device)
    if not torch.isfinite(rows).all():
        raise VitrailError(f"kNN: {side} features hold NaN or infinity; the checkpoint they come from has diverged")
    return torch.nn.functional.normalize(rows, dim=1)
