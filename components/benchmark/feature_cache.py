"""Features kept between runs by weights, images, and how features are taken: what changes any is a new file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from components.benchmark.contenders import Contender
from components.benchmark.spread import HERE, Pictured, Place, features_of
from components.evaluation.benchmarks import Benchmark
from components.evaluation.features import FeatureParams, Rows
from components.learning.export import ModelCard, weights_digest
from components.learning.vit import VisionTransformer
from components.params import fingerprint, results
from components.storage import atomic_file


def cached_features(
    contenders: Sequence[Contender],
    benchmark: Benchmark,
    params: FeatureParams,
    folder: Path | None,
    place: Place = HERE,
) -> dict[str, Rows]:
    """Features [n, D] of all images by the contender's name; those of checkpoints are read from ``folder`` if there.

    Without a folder nothing is kept. A file that cannot be read is made anew.
    """
    paths: dict[str, Path] = {}
    for one in contenders if folder is not None else ():
        # An untrained network's normalisation is that of its trained twin, which the contender does not hold.
        if one.model is not None and one.card is not None:
            paths[one.name] = Path(folder or "") / f"{_key(one.model, one.card, one, benchmark, params)}.npy"
    found = {name: rows for name, path in paths.items() if (rows := _read(path, len(benchmark.keys))) is not None}
    missing = [one for one in contenders if one.name not in found]
    pictured = Pictured(benchmark.images, lambda: benchmark.digest, f"{benchmark.name} features")
    made = features_of(missing, pictured, params.batch_size, place)
    for name, rows in made.items():
        if name in paths:
            with atomic_file(paths[name]) as file:
                np.save(file, rows)
    return {one.name: found[one.name] if one.name in found else made[one.name] for one in contenders}


def _key(
    model: VisionTransformer, card: ModelCard, contender: Contender, benchmark: Benchmark, params: FeatureParams
) -> str:
    about = {
        "weights": weights_digest(model),
        "vit": model.config.model_dump(mode="json"),
        "normalisation": [list(card.mean), list(card.std)],
        "images": benchmark.digest,
        "features": results(params),
        "size": contender.extractor.size,
    }
    return fingerprint(about)


def _read(path: Path, count: int) -> Rows | None:
    try:
        rows: Rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.ndim == 2 and len(rows) == count else None
