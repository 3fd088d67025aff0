"""Score normalisation (Pizzi et al. 2022, section 4.5): how alike a query is to everything counts against it.

A query's score with a reference is its cosine less ``beta`` x its mean cosine to its nearest images of a background
set, which holds no copy of either. One added dimension does it, so an inner-product index needs no change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.params import Strict


class ScoreNormParams(Strict):
    """The paper's values."""

    beta: float = Field(1.0, ge=0)
    neighbours: tuple[int, int] = (1, 3)  # ranks in the background, from 1, both counted


def normalise_queries(
    queries: NDArray[Any], background: NDArray[Any], params: ScoreNormParams, block: int = 1024
) -> NDArray[np.float32]:
    """[Q, d + 1] of ``queries`` [Q, d], whose last column is the penalty.

    Raises:
        ValueError: the background has fewer rows than the ranks asked for.
    """
    first, last = params.neighbours
    if not 1 <= first <= last <= len(background):
        raise ValueError(f"ranks {first} to {last} of a background of {len(background)} rows")
    rows, base = np.asarray(queries, np.float32), np.asarray(background, np.float32)
    penalty = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), block):
        cosine = rows[start : start + block] @ base.T
        top = -np.sort(np.partition(-cosine, last - 1, axis=1)[:, :last], axis=1)
        penalty[start : start + block] = top[:, first - 1 :].mean(1)
    return np.concatenate([rows, -params.beta * penalty[:, None]], 1)


def extend_references(references: NDArray[Any]) -> NDArray[np.float32]:
    """[R, d + 1] of ``references`` [R, d]: a 1 meets each query's penalty."""
    rows = np.asarray(references, np.float32)
    return np.concatenate([rows, np.ones((len(rows), 1), np.float32)], 1)
