"""What a training run shows of itself: curves, pictures of a few images, and scores of the averaged network.

Scores during training come from training-side images of a benchmark alone, divided here into a bank and a held-out
part; the benchmark's test images are never read, so nothing is tuned on them.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from components.errors import VitrailError, nearest
from components.evaluation.features.extract import square
from components.evaluation.features.pca import pca_pictures
from components.evaluation.probing.probes import Prober, ProbeScores, mean_of
from components.evaluation.probing.sample import draw
from components.evaluation.probing.seeds import crops_picture
from components.evaluation.sets.benchmarks import Benchmark, BenchmarksFile, load_benchmark
from components.evaluation.sets.dense_layouts import load_dense
from components.evaluation.sets.dense_set import DenseBenchmark
from components.images.decode import RGB
from components.learning.collate import normalize
from components.params import load_params
from components.storage import atomic_file
from components.tracking import Run, TrackingParams, null_run
from components.tracking import run as tracking_run
from components.training.checkpoints.checkpoint import Checkpoints
from components.training.checkpoints.identity import listed
from components.training.params import TrainingParams
from components.training.probe_params import DenseNamedParams, ProbeParams
from components.training.ranks.distributed import World
from components.training.sharded.engine import Engine

RUN_NOTE = "mlflow-run"  # file in the folder of the training state
RAW = "_raw_pixels"  # end of the names of the references' scores


@dataclass(frozen=True)
class Subject:
    """What a :class:`Recorder` records: the run's names, its data, and what is shown of it."""

    kind: str  # the stage
    preset: str
    data: tuple[str, str]  # name and digest of the training set, recorded with every checkpoint
    seeds: Sequence[RGB] = ()  # training images to show
    benchmark: Benchmark | None = None  # its training side is probed; None: no kNN and no linear probe
    masks: DenseBenchmark | None = None  # its training side is probed; None: `probe.dense` names no set


class Recorder:
    """Writes curves, pictures and probe scores to the MLflow run; a :class:`components.training.loop.Observer`.

    Every rank makes the probe's forward passes (ZeRO-3 gathers weights on all of them); rank 0 alone fits, scores and
    records. The network is read in eval mode and no generator of the training is touched, so a run ends with the same
    weights with and without probes.

    Args:
        backbone: the averaged network, whole or partitioned, in eval mode.
        dtype: of its forward passes.
    """

    def __init__(
        self,
        run: Run,
        backbone: nn.Module,
        dtype: torch.dtype,
        params: TrainingParams,
        world: World,
        subject: Subject,
    ) -> None:
        self.run, self.params, self.world = run, params, world
        self.model_id: str | None = None  # of the last checkpoint's LoggedModel
        self._backbone, self._dtype = backbone, dtype
        self._preset, self._kind, self._data = subject.preset, subject.kind, subject.data
        self._benchmark, self._masks, self._seeds = subject.benchmark, subject.masks, list(subject.seeds)
        self._prober: Prober | None = None
        self._raw: ProbeScores = {}
        self._models: dict[int, str | None] = {}  # step -> LoggedModel

    def begin(self) -> ProbeScores:
        """The pictures and the scores of the network that has seen nothing: where its curves begin."""
        return self._look(0)

    def enter(self, params: TrainingParams, backbone: nn.Module) -> None:
        """Go on with another phase of the run: other sizes, another averaged network."""
        self.params, self._backbone, self._prober = params, backbone, None

    def point(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a point to the curves."""
        self.run.log_metrics({f"train/{name}": value for name, value in figures.items() if name != "step"}, step=step)

    def probe(self, step: int) -> ProbeScores:
        """Log scores (0 ... 1) and pictures of the averaged network, with its LoggedModel; scores on rank 0 only.

        Raw pixels' scores on the same sample, names ending in ``_raw_pixels``, are beside them in the curves.
        """
        scores = self._look(step)
        if scores and self.world.main:
            assert self._prober is not None
            own = {name: value for name, value in scores.items() if not name.endswith(RAW)}
            model_id = self.register(step)
            for part, dataset in self._prober.by_dataset(own):
                self.run.log_scores(model_id, part, dataset, step)
        return scores

    def register(self, step: int, wait: float = 0.0) -> str | None:
        """The LoggedModel of the network after ``step`` steps, made if it is not there yet.

        Its id where the store answers within ``wait`` seconds, else its handle, by which later runs find it.
        """
        if self.world.main:
            if step not in self._models:
                self._models[step] = self.run.log_checkpoint(self._name(step), self.params, self._tags(), step=step)
            handle = self._models[step]
            self.model_id = self.run.stored(handle, wait) or handle
        return self.model_id

    def finish(self, out: Path, report: Mapping[str, Any]) -> None:
        """Attach the card, the curves and the report's figures; tag the checkpoint that the probes call the best."""
        for name in ("model.json", "curve.json"):
            self.run.log_artifacts(out / name, "model")
        figures = {name: float(report[name]) for name in ("minutes", "images_per_second", "skipped_steps")}
        probes = json.loads((out / "curve.json").read_text())["probes"]  # those before a resumption among them
        found = best_step(probes, self.params.probe.best_by)
        if found is not None:
            step, score = found
            if step not in self._models:
                facts = self.params.model_dump(mode="json") | {"step": step}
                self._models[step] = self.run.ensure_model(None, self._name(step), facts, self._tags())
            self.run.tag_model(self._models[step], {"vitrail.best": f"{self.params.probe.best_by} {score:.4f}"})
            figures["best_step"] = float(step)
        self.run.log_metrics({f"report/{name}": value for name, value in figures.items()}, step=report["iterations"])

    def _name(self, step: int) -> str:
        return f"{self._preset}-step{step}"

    def _tags(self) -> dict[str, str]:
        return {"preset": self._preset, "kind": self._kind, "data_digest": self._data[1]}

    def _look(self, step: int) -> ProbeScores:
        """Scores and pictures of the network as it is now, logged as points of the curves (rank 0)."""
        self._show(step)
        if not self.params.probe.scored:
            return {}
        first = self._prober is None
        if self._prober is None:
            self._prober = Prober(draw(self._benchmark, self.params, self._masks), self.params, self.world.device)
        if first and self.world.main:
            raw = self._prober.raw()
            self._raw = {f"{name}{RAW}": value for name, value in raw.items()}
            for _, (name, digest) in self._prober.by_dataset(raw):
                self.run.log_dataset(name, digest, f"probe of {self._preset}", "probe")
        found = self._prober.features(self._backbone, self._dtype)
        if not self.world.main:
            return {}
        if not found.finite:
            print(f"probe after step {step}: features hold NaN or infinity; not scored", file=sys.stderr, flush=True)
            return {}
        scores = self._prober.scores(found) | self._raw
        # A checkpoint's own scores are points of the run's curves, too, once they are its model's.
        self.run.log_metrics(scores if step == 0 else self._raw, step=step)
        return scores

    @torch.no_grad()
    def _show(self, step: int) -> None:
        """Crops and masks of the fixed images, drawn anew at each step, and the PCA of their patch features."""
        if not self._seeds:
            return
        params, patch = self.params, self.params.vit.patch_size
        size = max(1, (params.probe.picture_size or params.augment.global_size) // patch) * patch
        squares = np.stack([square(image, size) for image in self._seeds])
        pixels = torch.from_numpy(squares).permute(0, 3, 1, 2)
        images = normalize(pixels, params.augment.mean, params.augment.std, self.world.device)
        patches = self._backbone(images.to(self._dtype)).patches.float().cpu().numpy()
        if not self.world.main:
            return
        try:
            crops = crops_picture(self._seeds, params, np.random.default_rng([params.probe.seed, step]))
            self.run.log_image(crops, "crops", step=step)
            if np.isfinite(patches).all():
                self.run.log_image(pca_picture(squares, patches, patch), "pca", step=step)
        except Exception as fault:  # a picture is not worth a training run
            print(f"warning: pictures after step {step} could not be drawn: {fault}", file=sys.stderr, flush=True)


def pca_picture(squares: npt.NDArray[np.uint8], patches: npt.NDArray[np.float32], patch: int) -> npt.NDArray[np.uint8]:
    """Images above, the PCA of their patch tokens below, one basis for all of them."""
    grid = squares.shape[1] // patch
    shown = pca_pictures(patches, (grid, grid), squares.shape[1])
    return np.concatenate([np.concatenate(list(squares), axis=1), np.concatenate(list(shown), axis=1)], axis=0)


def best_step(probes: Sequence[Mapping[str, float]], method: str) -> tuple[int, float] | None:
    """The step, after the first, with the best mean of a method's scores (the later of equals), and that mean."""
    found = []
    for point in probes:
        own = {name: value for name, value in point.items() if not name.endswith(RAW)}
        mean = mean_of(own, method)
        if mean is not None and point["step"] > 0:
            found.append((mean, int(point["step"])))
    if not found:
        return None
    score, step = max(found)
    return step, score


@contextlib.contextmanager
def observe(
    subject: Subject,
    params: TrainingParams,
    engine: Engine,
    tracking: TrackingParams | None,
    benchmarks_file: Path | None,
    state: Checkpoints | None = None,
) -> Iterator[Recorder]:
    """A :class:`Recorder` of ``subject``, with its benchmark loaded; rank 0's writes to MLflow unless it is None.

    Args:
        benchmarks_file: where ``probe.benchmark`` and a named ``probe.dense`` are looked up.
        state: the run's checkpoints. Beside them the MLflow run's id is noted; when there are some, that run is
            continued, and its curves go on.

    Raises:
        VitrailError: a parameter file is missing, names no such benchmark, or MLflow cannot be reached.
    """
    benchmark, masks = named_sets(params.probe, benchmarks_file)
    subject = replace(subject, benchmark=benchmark, masks=masks)
    kind, preset, data = subject.kind, subject.preset, subject.data
    with contextlib.ExitStack() as stack:
        run = null_run()
        if engine.world.main and tracking is not None:
            config = params.model_dump(mode="json")
            tags = {"preset": preset, "data_digest": data[1]}
            if state is not None and state.changes:
                tags["vitrail.continued"] = listed(state.changes)[:5000]  # MLflow's limit
            former = _noted(state)
            run = stack.enter_context(tracking_run(kind, f"{kind} {preset}", tracking, config, tags, former))
            if state is not None and run.key != former:
                with atomic_file(state.folder / RUN_NOTE, "w") as file:
                    file.write(run.key + "\n")
            run.log_dataset("manifest", data[1], data[0], "training")
        backbone = engine.average.module.backbone
        yield Recorder(run, backbone, engine.dtype, params, engine.world, subject)


def named_sets(probe: ProbeParams, file: Path | None) -> tuple[Benchmark | None, DenseBenchmark | None]:
    """The sets that ``probe`` names in ``file`` (``params/benchmarks.yaml``): of labelled images, and of masks.

    Raises:
        VitrailError: no file, no such set in it, or one of depths where masks are needed.
    """
    dense = probe.dense.benchmark if isinstance(probe.dense, DenseNamedParams) else None
    asked = {"probe.benchmark": probe.benchmark, "probe.dense.benchmark": dense}
    wanted = {key: name for key, name in asked.items() if name is not None}
    if not wanted:
        return None, None
    if file is None:
        key, name = next(iter(wanted.items()))
        raise VitrailError(f"{key}: {name} is asked for, but no --benchmarks file")
    content = load_params(file, BenchmarksFile)
    for key, name in wanted.items():
        known = list(content.dense if key == "probe.dense.benchmark" else content.scored)
        if name not in known:
            kind = " as a set of masks" if key == "probe.dense.benchmark" else ""
            raise VitrailError(f"{key}: {name!r} is not in {file}{kind}{nearest(name, known)}")
    masks = None if dense is None else load_dense(dense, content.dense[dense])
    if masks is not None and masks.truth.kind != "segmentation":
        raise VitrailError(f"probe.dense.benchmark: {dense!r} of {file} holds depths; the dense probe needs masks")
    labelled = probe.benchmark
    return (None if labelled is None else load_benchmark(labelled, content.scored[labelled])), masks


def _noted(state: Checkpoints | None) -> str | None:
    """The id of the MLflow run that left the checkpoints; None without them, or when it recorded nothing."""
    if state is None or not state.found():
        return None
    note = state.folder / RUN_NOTE
    return note.read_text().strip() if note.is_file() else None
