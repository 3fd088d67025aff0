"""Features of images together with their classes: what classifiers are fitted on and scored by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of n images with a class each.

    Raises:
        VitrailError: labels do not match images.
    """

    features: npt.NDArray[np.floating]  # [n, D]
    labels: npt.NDArray[np.integer]  # [n]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1]:
            raise VitrailError(
                f"features {self.features.shape} and labels {self.labels.shape} do not fit: labels do not match images"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> LabelledFeatures:
        """Those of ``rows``: numbers, or a mask [n]."""
        return LabelledFeatures(self.features[rows], self.labels[rows])
