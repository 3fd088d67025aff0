"""How a setting is chosen among many: by the paper's rule, on the test images; and by held-out training images.

The best of many settings on the test images overstates: the choice has seen the answers. DINOv2's published figures are
of this kind, so they are needed to compare with it. The held-out choice is the honest figure. Both are reported.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError


class Chosen(NamedTuple):
    """Whether each test image was right [M], and the name of the setting that was chosen."""

    right: npt.NDArray[np.bool_]
    setting: str


class Choices(NamedTuple):
    """The two ways to choose."""

    on_test: Chosen  # the paper's rule
    held_out: Chosen


def choices(right: npt.NDArray[np.bool_], validation: npt.NDArray[np.bool_], settings: list[str]) -> Choices:
    """The setting with most right predictions on either side, the first of equals.

    Args:
        right: [H, M], by setting and test image, of heads that were fitted on the whole training side.
        validation: [H, V], by setting and held-out training image, of heads that were fitted on the others.
    """
    best, held = int(right.sum(1).argmax()), int(validation.sum(1).argmax())
    return Choices(Chosen(right[best], settings[best]), Chosen(right[held], settings[held]))


def divide(
    labels: npt.NDArray[np.integer], share: float, seed: int, groups: npt.NDArray[np.integer] | None = None
) -> npt.NDArray[np.bool_]:
    """Which training images [N] are held out to choose by: about ``share`` of each class, or of the groups.

    A class of one image keeps it for fitting, so that every class can be predicted.

    Raises:
        VitrailError: nothing is left on one side.
    """
    generator = np.random.default_rng([seed, 0x5E1])
    held = np.zeros(len(labels), bool)
    if groups is not None:
        names = generator.permutation(np.unique(groups))
        held = np.isin(groups, names[: max(1, round(share * len(names)))])
    else:
        for label in np.unique(labels).tolist():
            rows = generator.permutation(np.flatnonzero(labels == label))
            count = min(len(rows) - 1, max(1, round(share * len(rows)))) if share > 0 else 0
            held[rows[:count]] = True
    if not held.any() or held.all() or len(np.unique(labels[~held])) < 2:
        raise VitrailError(
            f"choice of a setting: {int(held.sum())} of {len(labels)} training images would be held out, and the "
            "others must hold two classes; more training images, or another held_out, are needed"
        )
    return held
