"""The mean corruption error (mCE) of Hendrycks and Dietterich 2019 (arXiv 1903.12261): errors beside AlexNet's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError

GROUPS = ("noise", "blur", "weather", "digital", "extra")  # folders that ImageNet-C's archives unpack into
SEVERITIES = 5  # of each corruption of ImageNet-C
# AlexNet's error on each corruption of ImageNet-C, in percent, the mean over the five severities: published with the
# set (https://github.com/hendrycks/robustness) and rounded to one place in the paper's table 1. The four corruptions
# of "extra" are no part of mCE.
ALEXNET = {
    "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.2640, "defocus_blur": 81.9880,
    "glass_blur": 82.6268, "motion_blur": 78.5948, "zoom_blur": 79.8360, "snow": 86.6816, "frost": 82.6572,
    "fog": 81.9324, "brightness": 56.4592, "contrast": 85.3204, "elastic_transform": 64.6056, "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}  # fmt: skip


def corruption_error(right: npt.NDArray[np.bool_], corruptions: Sequence[tuple[str, str]]) -> dict[str, float]:
    """The error (0 ... 1) of each corruption, its severities counted alike, in the order of their names."""
    cells: dict[tuple[str, str], list[bool]] = {}
    for one, corruption in zip(right.tolist(), corruptions, strict=True):
        cells.setdefault(corruption, []).append(one)
    found: dict[str, list[float]] = {}
    for (what, _), values in sorted(cells.items()):
        found.setdefault(what, []).append(1 - sum(values) / len(values))
    return {what: sum(errors) / len(errors) for what, errors in found.items()}


def mean_corruption_error(errors: Mapping[str, float]) -> float:
    """The mean over the fifteen corruptions of our error divided by AlexNet's: 1 is as many errors as AlexNet makes.

    Args:
        errors: corruption -> error (0 ... 1), as :func:`corruption_error` gives them.
    """
    return float(np.mean([100 * errors[what] / theirs for what, theirs in ALEXNET.items()]))


def check_complete(name: str, corruptions: Sequence[tuple[str, str]]) -> None:
    """Refuse a set that mCE is not defined for: a mean over fewer corruptions or severities is another figure.

    Args:
        name: the set's, for the message.
        corruptions: of each image what and how severe.

    Raises:
        VitrailError: a corruption or a severity is missing.
    """
    found: dict[str, set[str]] = {}
    for what, severity in corruptions:
        found.setdefault(what, set()).add(severity)
    missing = [what for what in ALEXNET if what not in found]
    if missing:
        raise VitrailError(
            f"benchmark {name}: no corruption {missing[0]!r} ({len(missing)} of {len(ALEXNET)} are missing); mCE is "
            "the mean over all of them: bring its folder, or leave `reference` out"
        )
    for what in ALEXNET:
        if len(found[what]) != SEVERITIES:
            raise VitrailError(
                f"benchmark {name}: {what} has {len(found[what])} severities, and AlexNet's error is the mean over "
                f"{SEVERITIES}; bring all, or leave `reference` out"
            )
