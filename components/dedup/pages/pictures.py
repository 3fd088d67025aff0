"""What dedup shows: the calibration's two histograms, duplicate groups, and what relative dedup caught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from components.dedup.copy_graph.calibrate import Calibration
from components.descriptors.views import squash
from components.images.samples import RGB
from components.storage import atomic_file


def draw_calibration(calibration: Calibration, path: Path) -> RGB:
    """Histograms of copies and of pairs known to differ, with both thresholds; written to ``path`` and returned."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lowest = min(float(calibration.differing.min()), *(float(c.min()) for c in calibration.copies.values()))
    bins = np.linspace(min(0.0, lowest), 1.0001, 80).tolist()
    axes.hist(
        calibration.differing, bins, density=True, color="0.75", label="nearest image known to differ (different label)"
    )
    axes.hist(
        calibration.nearest,
        bins,
        density=True,
        histtype="step",
        color="0.4",
        linestyle=":",
        label="nearest other image",
    )
    for kind, cosine in calibration.copies.items():
        if kind != "exact":
            axes.hist(cosine, bins, density=True, histtype="step", linewidth=1.4, label=f"planted copy: {kind}")
    axes.axvline(calibration.threshold_self, color="crimson", label=f"self-dedup > {calibration.threshold_self:.3f}")
    axes.axvline(
        calibration.threshold_relative,
        color="crimson",
        linestyle="--",
        label=f"held-out > {calibration.threshold_relative:.3f}",
    )
    axes.set(xlabel="cosine of descriptors", ylabel="density", ylim=(0, 12), title="Thresholds of the copy descriptor")
    axes.legend(fontsize=8, loc="upper left")
    canvas.draw()
    shown: RGB = np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3]
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=100)
    return np.ascontiguousarray(shown)


def page(groups: Sequence[Sequence[RGB]], *, side: int = 96, columns: int = 8) -> RGB:
    """One line of pictures a group, [lines * side, columns * side, 3]; longer groups are cut, no group gives white."""
    if not groups:
        return np.full((side, side * columns, 3), 255, np.uint8)
    sheet = np.full((len(groups) * side, columns * side, 3), 255, np.uint8)
    for line, group in enumerate(groups):
        for column, picture in enumerate(group[:columns]):
            top, left = line * side, column * side
            sheet[top : top + side - 2, left : left + side - 2] = squash(picture, side - 2)
    return sheet


def save(picture: RGB, path: Path, encode: Callable[[RGB, int], bytes]) -> None:
    """``picture`` as JPEG, quality 85."""
    with atomic_file(path) as file:
        file.write(encode(picture, 85))
