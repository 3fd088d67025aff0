"""Which features to compare checkpoints by, asked of the training side alone: held-out images are never read here.

python -m components.benchmark choose --params params/benchmark.yaml --benchmarks params/benchmarks.yaml \\
    --checkpoints data/pretrain/vitt --image-sizes 64 96 128 --crops 1.0 0.875
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from components.benchmark.features.contenders import find_checkpoints
from components.benchmark.methods.protocol import KnnParams
from components.evaluation.features.extract import Extractor, FeatureParams, Rows, Tokens, extract, network
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.image_level.knn import knn_predict
from components.evaluation.sets.benchmarks import Benchmark
from components.images.decode import RGB
from components.release.weights.load import load_model

FOLDS = 5


class TrainingSide:
    """The images of a benchmark that are not held out."""

    def __init__(self, benchmark: Benchmark) -> None:
        self._images, self._rows = benchmark.images, np.flatnonzero(~benchmark.test)

    def __len__(self) -> int:
        return len(self._rows)

    def bytes(self, row: int) -> bytes:
        return self._images.bytes(int(self._rows[row]))

    def rgb(self, row: int) -> RGB:
        return self._images.rgb(int(self._rows[row]))


class Inputs(NamedTuple):
    """What images are turned into, all combinations."""

    sizes: Sequence[int]  # pixels of a side
    crops: Sequence[float]  # shares of the picture


def choose(
    benchmark: Benchmark,
    checkpoints: Sequence[str | Path],
    inputs: Inputs,
    features: FeatureParams,
    knn: KnnParams,
    device: str,
) -> list[tuple[str, FeatureParams, dict[str, float]]]:
    """(checkpoint, candidate, percent right by task) in cross-validation over the training side, all candidates."""
    extractors: dict[str, Extractor] = {}
    candidates: dict[str, tuple[str, FeatureParams]] = {}
    for path in find_checkpoints(checkpoints):
        loaded = load_model(path, device, with_heads=False)
        model, card = loaded.backbone, loaded.card
        for size in inputs.sizes:
            for crop in inputs.crops:
                for tokens in get_args(Tokens):
                    candidate = features.model_copy(
                        update={"image_size": size, "crop": crop, "tokens": tokens, "blocks": None}
                    )
                    name = f"{path} {size} {crop} {tokens}"
                    extractors[name] = network(model, card.mean, card.std, card.image_size, candidate, device)
                    candidates[name] = f"{card.kind} {card.preset}", candidate
    found = extract(extractors, TrainingSide(benchmark), features.batch_size, f"{benchmark.name} training side")
    return [
        (
            *candidates[name],
            {task: _cross_validated(rows, labels[~benchmark.test], knn) for task, labels in benchmark.labels.items()},
        )
        for name, rows in found.items()
    ]


def _cross_validated(rows: Rows, labels: npt.NDArray[np.int64], knn: KnnParams) -> float:
    """Percent right over :data:`FOLDS` folds, each classified by its neighbours in the others."""
    fold = np.random.default_rng(0).permutation(len(rows)) % FOLDS
    right = 0
    for number in range(FOLDS):
        held = fold == number
        predicted = knn_predict(LabelledFeatures(rows[~held], labels[~held]), rows[held], knn.shown, knn.temperature)
        right += int((predicted == labels[held]).sum())
    return 100 * right / len(rows)


def table(found: Sequence[tuple[str, FeatureParams, dict[str, float]]]) -> str:
    """The candidates, best mean first."""
    ranked = sorted(found, key=lambda entry: -sum(entry[2].values()))
    tasks = list(ranked[0][2])
    lines = [f"{'checkpoint':20} {'px':>4} {'crop':>6} {'tokens':12} " + " ".join(f"{task:>8}" for task in tasks)]
    for name, candidate, accuracy in ranked:
        head = f"{name:20} {candidate.image_size!s:>4} {candidate.crop:6.3f} {candidate.tokens:12} "
        lines.append(head + " ".join(f"{accuracy[task]:8.1f}" for task in tasks))
    return "\n".join(lines)
