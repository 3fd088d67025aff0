"""PCA pictures of patch features, beside the pictures they are of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from components.errors import VitrailError, nearest
from components.evaluation.features.extract import square
from components.evaluation.features.pca import pca_pictures
from components.evaluation.sets.benchmarks import Benchmark
from components.images.decode import RGB
from components.learning.collate import normalize
from components.learning.export import ModelCard
from components.learning.vit import VisionTransformer
from components.params import Strict

SHIPPED = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket")  # in scikit-image's wheel


class PcaParams(Strict):
    """Which pictures are made."""

    image_size: int = Field(320, ge=32, le=8192)  # px
    photographs: list[str] = []  # of scikit-image, by name
    own: int = Field(8, ge=0, le=1000)  # images of the training manifest
    labelled: int = Field(8, ge=0, le=1000)  # images of each benchmark
    foreground: bool = True


def photographs(names: Sequence[str]) -> list[RGB]:
    """Photographs of scikit-image, uint8 [H, W, 3].

    Raises:
        VitrailError: none of that name ships with the package.
    """
    from skimage import data

    found = []
    for name in names:
        if name not in SHIPPED:
            raise VitrailError(f"pca.photographs: {name!r} does not ship with scikit-image{nearest(name, SHIPPED)}")
        picture = np.asarray(getattr(data, name)(), np.uint8)
        found.append(picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2))
    return found


def examples(benchmark: Benchmark, count: int) -> list[RGB]:
    """The first ``count`` training-side images."""
    return [benchmark.images.rgb(int(row)) for row in np.flatnonzero(~benchmark.test)[:count]]


@torch.inference_mode()
def picture(
    model: VisionTransformer, card: ModelCard, images: Sequence[RGB], params: PcaParams, device: str, foreground: bool
) -> npt.NDArray[np.uint8]:
    """``images`` in a row, their PCA pictures below, [2 S, n S, 3]; one basis for all of them."""
    patch = model.config.patch_size
    grid = max(2, params.image_size // patch)
    size = grid * patch
    squares = [square(rgb, size) for rgb in images]
    tokens = []
    for rgb in squares:  # one at a time: at this resolution a batch of a large model is gigabytes
        batch = torch.from_numpy(rgb).permute(2, 0, 1)[None]
        tokens.append(model(normalize(batch, card.mean, card.std, device)).patches.float().cpu().numpy())
    coloured = pca_pictures(np.concatenate(tokens), (grid, grid), size, foreground=foreground)
    return np.concatenate([np.concatenate(squares, axis=1), np.concatenate(list(coloured), axis=1)], axis=0)


def save_png(path: str, image: npt.NDArray[np.uint8]) -> None:
    """Write ``image`` [H, W, 3]."""
    from PIL import Image

    Image.fromarray(image).save(path, "PNG")
