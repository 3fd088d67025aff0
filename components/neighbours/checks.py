"""What every descriptor table must be before it is indexed or searched."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import VitrailError

ROWS = 1 << 16  # rows converted to fp32 at a time


def check_descriptors(rows: NDArray[Any], name: str, first: int = 0) -> None:
    """Raise a :class:`VitrailError` unless ``rows`` is [N > 0, d > 0], finite, and without zero rows.

    ``first`` is the number of ``rows[0]`` in the table that it is a part of, for the message.
    """
    if rows.ndim != 2 or not rows.size:
        raise VitrailError(f"{name}: expected descriptors [N, d] with N > 0, found shape {list(rows.shape)}")
    for start in range(0, len(rows), ROWS):
        block = fp32(rows[start : start + ROWS])
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        if not np.isfinite(norms).all():
            row = first + start + int(np.flatnonzero(~np.isfinite(norms))[0])
            raise VitrailError(f"{name}: row {row} is NaN or infinite; compute the descriptors again")
        if not norms.all():
            row = first + start + int(np.flatnonzero(norms == 0)[0])
            raise VitrailError(f"{name}: row {row} is all zeros, it has no direction; drop that image")


def fp32(rows: NDArray[Any]) -> NDArray[np.float32]:
    """``rows`` as contiguous fp32; torch widens fp16 several times as fast as NumPy."""
    if rows.dtype != np.float16:
        return np.ascontiguousarray(rows, dtype=np.float32)
    import torch

    # A memory-mapped file is read-only, which torch would warn of: it is copied first, by pages, as it must be anyway.
    held = np.array(rows) if not rows.flags.writeable else np.ascontiguousarray(rows)
    return torch.from_numpy(held).float().numpy()
