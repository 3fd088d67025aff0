"""A learning curve: five minutes of pretraining on 20,000 CIFAR-10 pictures, kNN on 4,000 held-out ones as it goes.

``python -m perf cifar`` where ../shared/data/cifar10-24k.parquet lies; ``python -m perf.cifar --set KEY=VALUE`` changes
the preset. On a GPU, ``--preset params/pretrain/vits_cifar.yaml`` trains a larger network. The curve is drawn to
perf/results/cifar.png, with raw pixels and the network as it starts for comparison.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PRESET = Path("params/pretrain/vitt_cifar.yaml")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-24k.parquet"
NEIGHBOURS = 20
POINTS = 10  # of the curve


@dataclass(frozen=True)
class Curve:
    """What is trained on what, and where on the way it is scored."""

    preset: Path = PRESET
    data: Path = DATA
    changes: Sequence[str] = ()  # of the preset, as KEY=VALUE
    points: int = POINTS


def main(asked: Curve | None = None) -> dict[str, object]:
    """Train, and return accuracies by images seen."""
    asked = asked or Curve()
    if not asked.data.exists():
        return {"left out": f"{asked.data.name} is not there"}
    from components.params import load_params
    from components.training.params import TrainingParams

    params = load_params(asked.preset, TrainingParams, list(asked.changes))
    shares = [number / asked.points for number in range(1, asked.points + 1)]
    with tempfile.TemporaryDirectory() as folder:
        figures = train_and_score(Path(folder), params, asked.data, shares)
    draw(figures, Path(__file__).parent / "results" / "cifar.png")
    return figures


def train_and_score(folder: Path, params: Any, data: Path, shares: Sequence[float]) -> dict[str, Any]:
    """The run, its state below ``folder``."""
    import pyarrow.parquet as pq

    from components.pretrain.method import Pretraining
    from components.storage import StorageParams
    from components.training.inputs import TrainingInputs
    from components.training.loop import Stretch, train
    from components.training.session import open_checkpoints, open_loader, start
    from perf.loader import as_dataset

    table = pq.read_table(data)
    side = np.array(table["split"].to_pylist())
    images = table["image"].to_pylist()
    labels = np.unique(np.array(table["label"].to_pylist()), return_inverse=True)[1]
    training, held_out = np.flatnonzero(side == "train"), np.flatnonzero(side == "test")
    as_dataset(folder, [images[i] for i in training])
    world = start(params)
    inputs = TrainingInputs(folder, folder, folder / "manifest", None)
    loader = open_loader(params, inputs, StorageParams(root=str(folder)), world, folder / "quarantine")
    learner = Pretraining(params, world)
    pixels = decoded(images, params.augment.global_size)
    bank, queries = (Labelled(pixels[rows], labels[rows]) for rows in (training, held_out))
    scorer = Scorer(learner, params, bank, queries, shares)
    params = params.model_copy(
        update={"probe": params.probe.model_copy(update={"benchmark": "held-out", "at": tuple(shares)})}
    )
    untrained, raw = scorer.probe(0)["knn"], scorer.raw()
    print(f"raw pixels {raw:.4f}, untrained {untrained:.4f}", flush=True)
    checkpoints = open_checkpoints(folder / "state", params, "perf", world)
    curves = train(learner, loader, params, checkpoints, scorer, Stretch("cifar", checkpoints.folder.parent))
    seen = params.run.batch
    return {
        "raw_pixels_knn": raw,
        "untrained_knn": untrained,
        "curve": [{"images": int(p["step"] * seen), "knn": round(p["knn"], 4)} for p in curves.probes],
        "half_width_95": round(1.96 * (0.25 / len(held_out)) ** 0.5, 4),
        "training_minutes": round(curves.seconds / 60, 2),
        "images_per_second": round(params.run.iterations * seen * world.size / max(curves.seconds, 1e-9), 1),
        "precision": learner.engine.precision,
        "iterations": params.run.iterations,
        "final": {k: round(v, 3) for k, v in curves.points[-1].items() if k in ("loss", "dino_global", "ibot")},
    }


def decoded(images: Sequence[bytes], size: int) -> np.ndarray:
    """uint8 [n, size, size, 3]."""
    import simplejpeg

    from components.evaluation.features.extract import square

    return np.stack([square(simplejpeg.decode_jpeg(data), size) for data in images])


@dataclass(frozen=True)
class Labelled:
    """Pictures [N, H, W, 3] uint8 and their labels [N]."""

    pixels: np.ndarray
    labels: np.ndarray


class Scorer:
    """kNN of the averaged network, held-out pictures against all training ones; the loop's observer."""

    def __init__(self, learner: Any, params: Any, bank: Labelled, queries: Labelled, shares: Sequence[float]) -> None:
        self._learner, self._params, self._shares = learner, params, shares
        self._bank, self._queries = bank, queries

    def begin(self) -> dict[str, float]:
        """Nothing: the untrained network is scored before the run."""
        return {}

    def point(self, step: int, figures: Mapping[str, float]) -> None:
        """The progress line says it."""

    def probe(self, step: int) -> dict[str, float]:
        """Accuracy after ``step`` steps."""
        return {"knn": self._accuracy(self._features(self._bank.pixels), self._features(self._queries.pixels))}

    def raw(self) -> float:
        """Accuracy of pixels."""
        both = (self._bank.pixels, self._queries.pixels)
        flat = [pixels.reshape(len(pixels), -1).astype(np.float32) / 255 for pixels in both]
        return self._accuracy(*flat)

    def _accuracy(self, bank: np.ndarray, queries: np.ndarray) -> float:
        from components.evaluation.features.labelled_features import LabelledFeatures
        from components.evaluation.image_level.knn import knn_predict

        known = LabelledFeatures(bank, self._bank.labels)
        return float((knn_predict(known, queries, NEIGHBOURS) == self._queries.labels).mean())

    def _features(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        from components.learning.collate import normalize

        augment, found = self._params.augment, []
        backbone = self._learner.engine.average.module.backbone
        weight = next(backbone.parameters())
        with torch.no_grad():
            for start in range(0, len(pixels), 512):
                images = torch.from_numpy(pixels[start : start + 512]).permute(0, 3, 1, 2).to(weight.device)
                found.append(backbone(normalize(images, augment.mean, augment.std).to(weight.dtype)).cls.float().cpu())
        return torch.cat(found).numpy()


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """The curve as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 3.6), dpi=110)
    seen = [0] + [point["images"] for point in figures["curve"]]
    scores = [figures["untrained_knn"]] + [point["knn"] for point in figures["curve"]]
    axes.plot(seen, [100 * s for s in scores], "o-", label="DINO + iBOT + KoLeo, averaged network")
    axes.axhline(100 * figures["raw_pixels_knn"], color="gray", linestyle="--", label="raw pixels")
    axes.axhline(100 * figures["untrained_knn"], color="gray", linestyle=":", label="untrained network")
    axes.set(xlabel="training images seen", ylabel=f"{NEIGHBOURS}-NN, 4,000 held-out pictures (%)")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A learning curve on CIFAR-10.")
    parser.add_argument("--preset", type=Path, default=PRESET)
    parser.add_argument("--data", type=Path, default=DATA, help="Parquet: image (JPEG bytes), label, split")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE over the preset")
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    found = main(Curve(given.preset, given.data, given.set, given.points))
    print(found)
    if given.json:
        given.json.write_text(json.dumps(found))
