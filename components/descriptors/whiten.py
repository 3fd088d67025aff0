"""PCA whitening of descriptors, as SSCD does after inference: fitted on the pool, then unit length again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import VitrailError


@dataclass(frozen=True)
class Whitening:
    """``(x - mean) @ projection``, then L2-normalised."""

    mean: NDArray[np.float32]  # [d]
    projection: NDArray[np.float32]  # [d, dim]

    def apply(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """[N, d] -> [N, dim], unit length."""
        return normalise((np.asarray(rows, np.float32) - self.mean) @ self.projection)


def fit_whitening(rows: NDArray[Any], dim: int, floor: float) -> Whitening:
    """Whiten ``rows`` [N, d] to their ``dim`` strongest directions.

    ``floor``: added to every direction's spread, relative to the largest, so that weak directions, mostly noise, are
    not blown up. All rows alike leave nothing to whiten: the mean is then kept in, and all stay alike.
    """
    rows = np.asarray(rows, np.float64)
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise VitrailError(f"descriptors: row {bad} is NaN or infinite; the network or the picture is broken")
    mean = rows.mean(0)
    spread, directions = np.linalg.eigh(np.cov(rows - mean, rowvar=False, bias=True).reshape(rows.shape[1], -1))
    order = np.argsort(-spread)[:dim]
    deviation = np.sqrt(np.clip(spread[order], 0, None))
    if deviation[0] < 1e-6:
        return Whitening(np.zeros_like(mean, np.float32), np.eye(rows.shape[1], len(order), dtype=np.float32))
    projection = directions[:, order] / (deviation + floor * deviation[0])
    return Whitening(mean.astype(np.float32), projection.astype(np.float32))


def normalise(rows: NDArray[Any]) -> NDArray[np.float32]:
    """``rows`` [N, d] at unit length. A zero row has no direction and stays zero, for the caller to refuse."""
    rows = np.asarray(rows, np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms == 0, 1, norms), np.float32)
