"""What each descriptor finds of edited copies, by the copy graph's own rule: the source of descriptors/limits.py.

    python -m perf copy_limits

The descriptors learn from 500 photographs of the development data; of the others 300 are originals, each edited in
every way below. An edited copy is found when the largest cosine between one's whole picture and the other's views is
over the threshold at which one in two hundred originals has another photograph for a copy. Twice: with the windows of
params/dedup.yaml, and with the mirror image beside them (`views.flip`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from components.descriptors.views import Views, reduce
from components.images.samples import RGB
from perf import attacks
from perf.copies import ROOT, SEED, SHARED, halves

TESTED, STRANGERS = 300, 20
FALSE = 0.005  # of the originals may have a neighbour that is no copy
WINDOWS = ((0.93, 2), (0.85, 3))  # params/dedup.yaml
Edit = Callable[[RGB, list[RGB], np.random.Generator], RGB]


def _crop(keep: float) -> Edit:
    def edit(rgb: RGB, _: list[RGB], generator: np.random.Generator) -> RGB:
        h, w = (round(side * keep) for side in rgb.shape[:2])
        top, left = generator.integers(0, rgb.shape[0] - h + 1), generator.integers(0, rgb.shape[1] - w + 1)
        return rgb[top : top + h, left : left + w]

    return edit


def _mirror(rgb: RGB, _: list[RGB], __: np.random.Generator) -> RGB:
    return np.ascontiguousarray(rgb[:, ::-1])


def _turn(degrees: float) -> Edit:
    def edit(rgb: RGB, _: list[RGB], __: np.random.Generator) -> RGB:
        import cv2

        height, width = rgb.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
        return np.asarray(cv2.warpAffine(rgb, matrix, (width, height)), np.uint8)

    return edit


def _quarter(rgb: RGB, _: list[RGB], __: np.random.Generator) -> RGB:
    return np.ascontiguousarray(np.rot90(rgb))


def _border(rgb: RGB, _: list[RGB], generator: np.random.Generator) -> RGB:
    import cv2

    wide = round(0.08 * max(rgb.shape[:2]))
    level = int(generator.choice([0, 255]))
    return np.asarray(cv2.copyMakeBorder(rgb, *[wide] * 4, cv2.BORDER_CONSTANT, value=(level,) * 3), np.uint8)


EDITS: dict[str, Edit] = {
    "JPEG 5 to 30": attacks.jpeg,
    "scaled to 0.2 to 0.5": attacks.scale,
    "cropped to 0.9 of each side": _crop(0.9),
    "cropped to 0.8 of each side": _crop(0.8),
    "cropped to 0.55 of each side": _crop(0.55),
    "mirrored": _mirror,
    "mirrored and cropped to 0.9": lambda rgb, others, g: _mirror(_crop(0.9)(rgb, others, g), others, g),
    "text over it": attacks.text,
    "emoji over it": attacks.emoji,
    "colours changed": attacks.colour,
    "border of 8 %": _border,
    "turned by 5 degrees": _turn(5),
    "turned by 90 degrees": _quarter,
    "screenshot": attacks.screenshot,
    "collage of 2 or 4": attacks.collage,
}


def main() -> dict[str, object]:
    """Percent found of each edit, by descriptor, without and with the mirror image."""
    if not SHARED.exists():
        return {"left out": f"no {SHARED.name} beside the checkout"}
    training, rest = halves()
    strangers, originals = rest[:STRANGERS], rest[STRANGERS : STRANGERS + TESTED]
    generator = np.random.default_rng(SEED)
    edited = {name: [edit(p, strangers, generator) for p in originals] for name, edit in EDITS.items()}
    found: dict[str, object] = {}
    for kind in ("discriminant", "trained", "thumbnail"):
        describe = _descriptor(kind, training)
        base = describe(originals)
        rows = {name: describe(pictures) for name, pictures in edited.items()}
        for flip in (False, True):
            found[f"{kind}, flip {flip}"] = _shares(base, rows, flip)
            print(kind, flip, found[f"{kind}, flip {flip}"], flush=True)
    return {"originals": len(originals), "found, %": found}


def _descriptor(kind: str, training: list[RGB]) -> Callable[[list[RGB]], npt.NDArray[np.float32]]:
    """Pictures -> [n, R, d] of all views, the mirror image last."""
    import tempfile
    from pathlib import Path

    from components.dedup.pool.extract import describe_pictures
    from components.descriptors.kinds import (
        DiscriminantDescriptorParams,
        LearnedParams,
        ThumbnailParams,
        TrainedParams,
        learn,
        load_descriptor,
        thumbnail_side,
    )
    from components.descriptors.views import squash
    from components.params import load_params
    from components.storage import StorageParams

    params: LearnedParams = DiscriminantDescriptorParams(kind="discriminant")
    if kind == "thumbnail":
        params = ThumbnailParams(kind="thumbnail")
    if kind == "trained":
        params = load_params(ROOT / "params/sscd/small.yaml", TrainedParams)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        learn(params, [squash(picture, thumbnail_side(params)) for picture in training], path)
        descriptor = load_descriptor(params, path, StorageParams(root="data"))
    views = Views(WINDOWS, flip=True)
    return lambda pictures: describe_pictures(
        descriptor, (reduce(picture, descriptor.side) for picture in pictures), views
    ).astype(np.float32)


def _shares(base: npt.NDArray[np.float32], rows: dict[str, npt.NDArray[np.float32]], flip: bool) -> dict[str, float]:
    last = None if flip else -1
    base = base[:, :last]
    among = _cosine(base, base)
    np.fill_diagonal(among, -1)
    threshold = float(np.quantile(np.maximum(among, among.T).max(1), 1 - FALSE, method="higher"))
    shares = {"threshold": round(threshold, 3)}
    for name, given in rows.items():
        edited = given[:, :last]
        pair = np.maximum(_own(edited[:, 0], base), _own(base[:, 0], edited))
        shares[name] = round(100 * float((pair > threshold).mean()), 1)
    return shares


def _cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The largest cosine of each whole picture of ``a`` with any view of each of ``b`` [n, m]."""
    return np.stack([(a[:, 0] @ one.T).max(1) for one in b], 1)


def _own(whole: npt.NDArray[np.float32], views: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(np.einsum("nd,nrd->nr", whole, views).max(1))
