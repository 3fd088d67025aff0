"""The curation's PCA hash beside PDQ and pHash: precision and recall over edited photographs.

Of the 1,000 photographs of the development data 500 fit the PCA hash (a frozen artifact, as from an earlier crawl);
each of the other 500 is edited in every way of :data:`EDITS` and compared with all 500. A pair within the radius is
right when it is a photograph and its own edit. ``python -m perf pca_hash``; PDQ comes with the extra ``perf``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from perf.attacks import ATTACKS, RGB
from perf.copies import SEED, SHARED, _there, halves, pdq, phash

Codes = npt.NDArray[np.uint8]
RADII = {"PCA hash": (0, 3, 8, 16, 31), "PDQ": (0, 8, 16, 31), "pHash": (0, 2, 4, 8)}  # bits; PDQ's makers: 31
STRANGERS = 20  # photographs that fill collages


def main() -> dict[str, object]:
    """Precision and recall in percent, of each hash at each radius, over all edits and by edit."""
    if not SHARED.exists():
        return {"left out": f"no {SHARED.name} beside the checkout"}
    fitting, rest = halves()
    strangers, tested = rest[:STRANGERS], rest[STRANGERS:]
    edited = {
        name: [edit(picture, strangers, np.random.default_rng([SEED, n])) for n, picture in enumerate(tested)]
        for name, edit in (EDITS | ATTACKS).items()
    }
    found: dict[str, object] = {"originals": len(tested), "edits": list(edited)}
    for name, hashing in hashes(fitting).items():
        if isinstance(hashing, str):
            found[name] = hashing
            continue
        references = hashing(tested)
        distances = {edit: _distances(hashing(pictures), references) for edit, pictures in edited.items()}
        among = _distances(references, references)[np.triu_indices(len(tested), 1)]
        for radius in RADII[name]:
            found[f"{name}, {8 * references.shape[1]} bits, radius {radius}"] = {
                **_score([*distances.values()], radius),
                "different photographs taken for one": int((among <= radius).sum()),
                "recall by edit": {edit: _score([one], radius)["recall"] for edit, one in distances.items()},
            }
    return found


def _same(rgb: RGB, _: list[RGB], __: np.random.Generator, quality: int = 0, factor: float = 1.0) -> RGB:
    import cv2

    if factor != 1:
        size = round(rgb.shape[1] * factor), round(rgb.shape[0] * factor)
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    if quality:
        _, data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
        rgb = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return rgb


def _edit(quality: int = 0, factor: float = 1.0) -> Callable[[RGB, list[RGB], np.random.Generator], RGB]:
    return lambda rgb, others, generator: _same(rgb, others, generator, quality, factor)


EDITS = {  # what the hash is for: the same picture, stored again
    "JPEG 90": _edit(90),
    "JPEG 75": _edit(75),
    "JPEG 40": _edit(40),
    "scale 2/3": _edit(factor=2 / 3),
    "scale 1/2, JPEG 75": _edit(75, 0.5),
    "scale 1.5": _edit(factor=1.5),
}


def hashes(fitting: Sequence[RGB]) -> dict[str, Callable[[Sequence[RGB]], Codes] | str]:
    """Name -> pictures to packed codes ``[N, B]``, or why it is left out."""
    from components.curate.duplicates.pca_hash import HashParams, fit, thumbnail

    fitted = fit(np.stack([thumbnail(picture) for picture in fitting]), HashParams())
    assert fitted is not None

    def pca(pictures: Sequence[RGB]) -> Codes:
        codes, _ = fitted(np.stack([thumbnail(picture) for picture in pictures]))
        return codes

    there = _there("pdqhash")
    return {
        "PCA hash": pca,
        "PDQ": (lambda pictures: np.packbits(pdq()(pictures) > 0, axis=1)) if there else "left out: no pdqhash",
        "pHash": lambda pictures: np.packbits(phash(pictures) > 0, axis=1),
    }


def _distances(one: Codes, other: Codes) -> npt.NDArray[np.int64]:
    """Hamming distances ``[N, M]``."""
    return np.stack([np.bitwise_count(code ^ other).sum(1, dtype=np.int64) for code in one])


def _score(distances: Sequence[npt.NDArray[np.int64]], radius: int) -> dict[str, object]:
    """Of all (edit, photograph) pairs within the radius: how many are right, and of all right ones how many."""
    right = sum(int((np.diag(one) <= radius).sum()) for one in distances)
    taken = sum(int((one <= radius).sum()) for one in distances)
    of = sum(len(one) for one in distances)
    return {"precision": round(100 * right / taken, 2) if taken else None, "recall": round(100 * right / of, 1)}


if __name__ == "__main__":
    print(main())
