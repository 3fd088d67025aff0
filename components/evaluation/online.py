"""What a training run shows of itself: curves, crops, masks, PCA of patches, and kNN scores of the averaged network.

Scores during training come from training-side images of a benchmark alone, split here into a bank and a held-out part;
the benchmark's test images are never read, so nothing is tuned on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from components.errors import VitrailError, nearest
from components.evaluation.benchmarks import Benchmark, BenchmarksFile, load_benchmark
from components.evaluation.features import square
from components.evaluation.knn import knn_predict
from components.evaluation.pca import pca_pictures
from components.learning.collate import Crops, normalize
from components.learning.distributed import World
from components.learning.engine import Engine
from components.learning.masks import sample_masks
from components.learning.training import TrainingParams
from components.params import load_params
from components.tracking import Run, TrackingParams, null_run
from components.tracking import run as tracking_run

BATCH = 128  # images a forward pass of the probe


class Recorder:
    """Writes curves, pictures and probe scores to the MLflow run; a :class:`components.learning.loop.Observer`.

    Every rank makes the probe's forward passes (ZeRO-3 gathers weights on all of them); rank 0 alone records.

    Args:
        backbone: the averaged network, whole or partitioned.
        benchmark: its training side is probed; None: no probe.
        data: name and digest of the training set, recorded with every checkpoint.
    """

    def __init__(
        self,
        run: Run,
        backbone: nn.Module,
        dtype: torch.dtype,
        params: TrainingParams,
        preset: str,
        kind: str,
        world: World,
        data: tuple[str, str],
        benchmark: Benchmark | None = None,
    ) -> None:
        self.run, self.params, self.world = run, params, world
        self.model_id: str | None = None  # of the last checkpoint's LoggedModel
        self._backbone, self._dtype = backbone, dtype
        self._preset, self._kind, self._data = preset, kind, data
        self._benchmark = benchmark
        self._images: Tensor | None = None
        self._registered = -1

    def begin(self, crops: Crops, step: int) -> None:
        """Show the first images' crops and masks."""
        if not self.world.main or not self.params.probe.pictures:
            return
        self.run.log_image(crops_picture(crops, self.params), "crops", step=step)

    def enter(self, params: TrainingParams, backbone: nn.Module) -> None:
        """Go on with another phase of the run: other sizes, another averaged network."""
        self.params, self._backbone, self._images = params, backbone, None

    def point(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a point to the curves."""
        self.run.log_metrics({f"train/{name}": value for name, value in figures.items() if name != "step"}, step=step)

    def probe(self, step: int) -> dict[str, float]:
        """kNN accuracy (0 ... 1) of every label set of the benchmark, held-out part against bank."""
        if self._benchmark is None:
            return {}
        rows = probe_rows(self._benchmark, self.params)
        bank = self.params.probe.bank
        cls, patches = self._features(rows)
        scores = {}
        for task, labels in self._benchmark.labels.items():
            wanted = np.asarray(labels)[rows]
            predicted = knn_predict(cls[:bank], wanted[:bank], cls[bank:], self.params.probe.neighbours)
            name = f"probe/{self._benchmark.name}/{task}/knn{self.params.probe.neighbours}"
            scores[name] = float(np.mean(predicted == wanted[bank:]))
        if self.world.main:
            self.run.log_metrics(scores, step=step)
            self.register(step, scores)
            if len(patches):
                self.run.log_image(self._pca(patches), "pca", step=step)
        return scores

    def register(self, step: int, scores: Mapping[str, float] | None = None) -> str | None:
        """The LoggedModel of the network after ``step`` steps, made if it is not there yet."""
        if self.world.main and self._registered != step:
            on = self._benchmark
            self.model_id = self.run.log_checkpoint(
                f"{self._preset}-step{step}",
                self.params,
                tags={"preset": self._preset, "kind": self._kind, "data_digest": self._data[1]},
                metrics=scores,
                step=step,
                dataset=(f"{on.name}-train-side", on.digest) if on is not None and scores else None,
            )
            self._registered = step
        return self.model_id

    def finish(self, out: Path, report: Mapping[str, Any]) -> None:
        """Attach the card, the curves and the report's figures."""
        for name in ("model.json", "curve.json"):
            self.run.log_artifacts(out / name, "model")
        figures = ("minutes", "images_per_second", "skipped_steps")
        self.run.log_metrics({f"report/{name}": float(report[name]) for name in figures}, step=report["iterations"])

    @torch.no_grad()
    def _features(self, rows: Sequence[int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Class tokens of ``rows`` [n, D], and the first pictures' patch tokens [p, N, D]."""
        assert self._benchmark is not None
        augment = self.params.augment
        if self._images is None:
            size = augment.global_size
            pixels = np.stack([square(self._benchmark.images.rgb(i), size) for i in rows])
            self._images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        cls, patches = [], []
        for start in range(0, len(rows), BATCH):
            images = normalize(self._images[start : start + BATCH], augment.mean, augment.std, self.world.device)
            features = self._backbone(images.to(self._dtype))
            cls.append(features.cls.float().cpu())
            if start == 0:
                patches.append(features.patches[: self.params.probe.pictures].float().cpu())
        return torch.cat(cls).numpy(), torch.cat(patches).numpy()

    def _pca(self, patches: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        assert self._images is not None
        pixels = self._images[: len(patches)].permute(0, 2, 3, 1).numpy()
        shown = pca_pictures(patches, self.params.grid(), pixels.shape[1])
        return np.concatenate([np.concatenate(list(pixels), axis=1), np.concatenate(list(shown), axis=1)], axis=0)


def probe_rows(benchmark: Benchmark, params: TrainingParams) -> list[int]:
    """Bank rows, then held-out rows: a seeded draw from the benchmark's training side.

    Small benchmarks are cut in the asked proportion.
    """
    side = np.flatnonzero(~np.asarray(benchmark.test))
    order = np.random.default_rng([params.run.seed, 0x9E3779B9]).permutation(side)
    wanted = params.probe.bank + params.probe.held_out
    return [int(i) for i in order[:wanted]]


def crops_picture(crops: Crops, params: TrainingParams) -> npt.NDArray[np.uint8]:
    """One row an image: both global crops with a mask laid over the first, then its local crops, [H, W, 3]."""
    augment, patch = params.augment, params.vit.patch_size
    shown = min(params.probe.pictures, len(crops.globals) // 2)
    batch = len(crops.globals) // 2
    masks = sample_masks(2 * batch, params.grid(), params.masks, np.random.default_rng(params.run.seed))
    mean, std = torch.tensor(augment.mean).view(-1, 1, 1), torch.tensor(augment.std).view(-1, 1, 1)

    def pixels(crop: Tensor, mask: Tensor | None = None) -> npt.NDArray[np.uint8]:
        image = ((crop.cpu().float() * std + mean).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        if mask is not None:
            hidden = np.kron(mask.view(params.grid()).numpy(), np.ones((patch, patch), bool))
            image = np.where(hidden[..., None], np.uint8(128), image)
        return padded(np.ascontiguousarray(image), augment.global_size)

    rows = []
    for i in range(shown):
        cells = [pixels(crops.globals[i]), pixels(crops.globals[i], masks[i]), pixels(crops.globals[batch + i])]
        cells += [pixels(crops.locals[j * batch + i]) for j in range(augment.locals)]
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows, axis=0)


def padded(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """``image`` in the top left corner of a black square of ``size``."""
    out = np.zeros((size, size, 3), np.uint8)
    out[: image.shape[0], : image.shape[1]] = image
    return out


@contextlib.contextmanager
def observe(
    kind: str,
    preset: str,
    params: TrainingParams,
    engine: Engine,
    tracking_file: Path | None,
    benchmarks_file: Path | None,
    data: tuple[str, str],
) -> Iterator[Recorder]:
    """A :class:`Recorder` for the run of stage ``kind``; rank 0's writes to MLflow unless ``tracking_file`` is None.

    Raises:
        VitrailError: a parameter file is missing, names no such benchmark, or MLflow cannot be reached.
    """
    benchmark = None
    if params.probe.benchmark is not None:
        if benchmarks_file is None:
            raise VitrailError(f"probe.benchmark: {params.probe.benchmark} is asked for, but no --benchmarks file")
        known = load_params(benchmarks_file, BenchmarksFile).benchmarks
        if params.probe.benchmark not in known:
            hint = nearest(params.probe.benchmark, list(known))
            raise VitrailError(f"probe.benchmark: {params.probe.benchmark!r} is not in {benchmarks_file}{hint}")
        benchmark = load_benchmark(params.probe.benchmark, known[params.probe.benchmark])
    with contextlib.ExitStack() as stack:
        run = null_run()
        if engine.world.main and tracking_file is not None:
            config = params.model_dump(mode="json")
            tags = {"preset": preset, "data_digest": data[1]}
            tracked = tracking_run(kind, f"{kind} {preset}", load_params(tracking_file, TrackingParams), config, tags)
            run = stack.enter_context(tracked)
            run.log_dataset("manifest", data[1], data[0], "training")
        backbone = engine.average.module.backbone
        yield Recorder(run, backbone, engine.dtype, params, preset, kind, engine.world, data, benchmark)
