"""Descriptors on disk: the array that travels to workers by its path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import VitrailError


@dataclass(frozen=True)
class DescriptorRows:
    """Descriptors [N, R, d] in an ``.npy`` file, memory-mapped: what travels to workers is its path."""

    path: Path

    def open(self) -> NDArray[Any]:
        """The array, unread.

        Raises:
            VitrailError: it is missing or not an array of three dimensions.
        """
        try:
            rows: NDArray[Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as fault:
            raise VitrailError(f"{self.path}: not readable descriptors ({fault}); run dedup again") from None
        if rows.ndim != 3:
            raise VitrailError(f"{self.path}: expected descriptors [images, windows, dim], found {list(rows.shape)}")
        return rows

    def flat(self) -> NDArray[Any]:
        """The same as [N * R, d]."""
        rows = self.open()
        return rows.reshape(-1, rows.shape[2])
