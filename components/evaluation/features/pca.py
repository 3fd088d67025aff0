"""Pictures of patch features: their three first principal components as red, green and blue (DINOv2, section 7.5)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def pca_pictures(
    patches: npt.NDArray[np.floating], grid: tuple[int, int], size: int, *, foreground: bool = False
) -> npt.NDArray[np.uint8]:
    """One picture an image, [n, size * h / max(h, w), size * w / max(h, w), 3] uint8; one basis for all n images.

    Args:
        patches: [n, h * w, D], patch tokens after the final norm.
        grid: (h, w) in patches.
        size: pixels of the longer side.
        foreground: first keep the patches on one side of the first component's mean, the side that prevails in the
            middle of the pictures, and colour only those; the rest stays black.
    """
    count = len(patches)
    flat = np.asarray(patches, np.float64).reshape(-1, patches.shape[-1])
    shown = np.ones(len(flat), bool)
    if foreground:
        shown = _foreground(_project(flat, flat, 1)[:, 0].reshape(count, *grid)).reshape(-1)
    colours = np.zeros((len(flat), 3), np.uint8)
    values = _project(flat[shown], flat[shown], 3)
    low, high = np.percentile(values, [1, 99], axis=0)
    scaled = (values - low) / np.where(high > low, high - low, 1.0)
    colours[shown, : values.shape[1]] = (np.clip(scaled, 0, 1) * 255).round()
    return _enlarged(colours.reshape(count, *grid, 3), size)


def _project(fitted: npt.NDArray[np.float64], rows: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """``rows`` [m, D] on the ``count`` first principal axes of ``fitted``, each axis with its largest part positive."""
    mean = fitted.mean(0)
    centred = fitted - mean
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :count]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    projected: npt.NDArray[np.float64] = (rows - mean) @ axes
    return projected


def _foreground(first: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Where the first component [n, h, w] is on the side that prevails in the middle half of the pictures."""
    _, height, width = first.shape
    middle = first[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    sign = 1.0 if middle.mean() >= first.mean() else -1.0
    kept: npt.NDArray[np.bool_] = sign * first > 0
    # Fewer than three patches hold no three components.
    return kept if kept.sum() >= 3 else np.ones_like(kept)


def _enlarged(colours: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """[n, h, w, 3] with every patch as an even block of pixels."""
    _, height, width, _ = colours.shape
    factor = size / max(height, width)
    rows = np.minimum((np.arange(round(height * factor)) / factor).astype(int), height - 1)
    columns = np.minimum((np.arange(round(width * factor)) / factor).astype(int), width - 1)
    return colours[:, rows][:, :, columns]
