"""A learning curve: five minutes of pretraining on 20,000 CIFAR-10 pictures, kNN on 4,000 held-out ones as it goes.

``python -m perf cifar`` where ../shared/data/cifar10-24k.parquet lies; ``python -m perf.cifar --set KEY=VALUE`` changes
the preset. On a GPU, ``--preset params/pretrain/vits_cifar.yaml`` trains a larger network. The curve is drawn to
perf/results/cifar.png, with raw pixels and the network as it starts for comparison.

A long run goes in parts: ``--preset params/pretrain/vitt_cifar_contrastive.yaml --folder FOLDER --points 28``. ``kill``
(SIGTERM) or Ctrl-C ends a part with a checkpoint, and the same command goes on from the last one. The folder holds
curve.json and curve.png: the curve of all parts so far, with the processor time and the wall time of each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
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
    folder: Path | None = None  # keeps the state, for a run in parts; None: a temporary one


def main(asked: Curve | None = None) -> dict[str, object]:
    """Train, and return accuracies by images seen."""
    asked = asked or Curve()
    if not asked.data.exists():
        return {"left out": f"{asked.data.name} is not there"}
    from components.params import load_params
    from components.training.params import TrainingParams

    params = load_params(asked.preset, TrainingParams, list(asked.changes))
    shares = [number / asked.points for number in range(1, asked.points + 1)]
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
        return train_and_score(asked.folder, params, asked.data, shares)
    with tempfile.TemporaryDirectory() as folder:
        figures = train_and_score(Path(folder), params, asked.data, shares)
    draw(figures, Path(__file__).parent / "results" / "cifar.png")
    return figures


def train_and_score(folder: Path, params: Any, data: Path, shares: Sequence[float]) -> dict[str, Any]:
    """The run, its state below ``folder``; goes on from what is there."""
    import pyarrow.parquet as pq

    from components.pretrain.method import Pretraining
    from components.release.weights.fetch import file_sha256
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
    if not (folder / "manifest").exists():
        as_dataset(folder, [images[i] for i in training])
    world = start(params)
    inputs = TrainingInputs(folder, folder, folder / "manifest", None)
    loader = open_loader(params, inputs, StorageParams(root=str(folder)), world, folder / "quarantine")
    learner = Pretraining(params, world)
    pixels = decoded(images, params.augment.global_size)
    bank, queries = (Labelled(pixels[rows], labels[rows]) for rows in (training, held_out))
    record = Record(folder, params.run.batch * world.size)
    scorer = Scorer(learner, params, bank, queries, record)
    params = params.model_copy(
        update={"probe": params.probe.model_copy(update={"benchmark": "held-out", "at": tuple(shares)})}
    )
    if not record.start:
        record.start = {"raw_pixels_knn": scorer.raw(), "untrained_knn": scorer.probe(0)["knn"]}
        print(", ".join(f"{name} {value:.4f}" for name, value in record.start.items()), flush=True)
    checkpoints = open_checkpoints(folder / "state", params, params.identity(file_sha256(data)), world)
    record.begin()
    curves = train(learner, loader, params, checkpoints, scorer, Stretch("cifar", checkpoints.folder.parent))
    seen = params.run.batch
    figures = record.content() | {
        "half_width_95": round(1.96 * (0.25 / len(held_out)) ** 0.5, 4),
        "training_minutes": round(curves.seconds / 60, 2),
        "images_per_second": round(params.run.iterations * seen * world.size / max(curves.seconds, 1e-9), 1),
        "precision": learner.engine.precision,
        "iterations": params.run.iterations,
        "objective": params.objective.kind,
        "final": {
            k: round(v, 3) for k, v in curves.points[-1].items() if k in ("loss", "dino_global", "ibot", "contrastive")
        },
    }
    record.save(figures)
    return figures


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


class Record:
    """The curve of all parts of a run and the time of each, in ``folder``/curve.json, written as it grows.

    Times count from the start of a part to its last point of the curves, without scoring. What a part did after its
    last checkpoint counts, too, though the next part does it again.
    """

    def __init__(self, folder: Path, images: int) -> None:
        """Of steps of ``images``; goes on from what the folder holds."""
        self._path, self._images = folder / "curve.json", images
        before = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.start: dict[str, float] = {k: before[k] for k in ("raw_pixels_knn", "untrained_knn") if k in before}
        self._curve: list[dict[str, float]] = before.get("curve", [])
        self._parts: list[dict[str, float]] = before.get("parts", [])
        self.begin()
        self._begun = False

    def begin(self) -> None:
        """Training starts now."""
        self._since, self._scoring = (time.process_time(), time.monotonic()), [0.0, 0.0]

    def at(self, step: int) -> None:
        """This part has come to ``step``."""
        used = (time.process_time() - self._since[0], time.monotonic() - self._since[1])
        cpu, wall = (round(a - b, 1) for a, b in zip(used, self._scoring, strict=True))
        if not self._begun:
            self._parts.append({})
        self._begun = True
        self._parts[-1] = {"to_step": step, "processor_seconds": cpu, "wall_seconds": wall}
        self.save(self.content())

    def scored(self, step: int, scores: Mapping[str, float], began: tuple[float, float]) -> None:
        """The scores after ``step``; scoring ``began`` at these processor and wall times."""
        self._scoring[0] += time.process_time() - began[0]
        self._scoring[1] += time.monotonic() - began[1]
        if not step:
            return
        self.at(step)
        spent = sum(part["processor_seconds"] for part in self._parts)
        point = {"images": step * self._images, **{k: round(v, 4) for k, v in scores.items()}}
        earlier = [p for p in self._curve if p["images"] < point["images"]]
        self._curve = [*earlier, point | {"processor_minutes": round(spent / 60, 1)}]
        self.save(self.content())
        draw(self.content(), self._path.with_suffix(".png"))

    def content(self) -> dict[str, Any]:
        """All that is known so far."""
        return {**self.start, "curve": list(self._curve), "parts": list(self._parts)}

    def save(self, content: Mapping[str, Any]) -> None:
        """Write the file whole."""
        from components.storage import atomic_file

        with atomic_file(self._path, "w") as file:
            json.dump(content, file, indent=1)


class Scorer:
    """kNN of the averaged network, held-out pictures against all training ones; the loop's observer."""

    def __init__(self, learner: Any, params: Any, bank: Labelled, queries: Labelled, record: Record) -> None:
        self._learner, self._params, self._record = learner, params, record
        self._bank, self._queries = bank, queries

    def begin(self) -> dict[str, float]:
        """Nothing: the untrained network is scored before the run."""
        return {}

    def point(self, step: int, figures: Mapping[str, float]) -> None:
        """The progress line says it; how long it took is kept."""
        self._record.at(step)

    def probe(self, step: int) -> dict[str, float]:
        """Accuracy after ``step`` steps: by the class token, and by it with the mean patch token beside it."""
        began = (time.process_time(), time.monotonic())
        bank, queries = self._features(self._bank.pixels), self._features(self._queries.pixels)
        dim = bank.shape[1] // 2
        scores = {
            "knn": self._accuracy(bank[:, :dim], queries[:, :dim]),
            "knn_both_tokens": self._accuracy(bank, queries),
        }
        self._record.scored(step, scores, began)
        return scores

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
                tokens = backbone(normalize(images, augment.mean, augment.std).to(weight.dtype))
                found.append(torch.cat([tokens.cls, tokens.patches.mean(1)], 1).float().cpu())
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
    axes.plot(seen, [100 * s for s in scores], "o-", label="averaged network, class token")
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
    parser.add_argument("--folder", type=Path, help="keeps the run's state and curve.json; the same again goes on")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    found = main(Curve(given.preset, given.data, given.set, given.points, given.folder))
    print(found)
    if given.json:
        given.json.write_text(json.dumps(found))
