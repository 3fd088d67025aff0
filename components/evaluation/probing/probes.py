"""kNN, linear and dense probe of a network on a fixed sample: one forward pass of each image serves all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from components.evaluation.dense.patch_labels import Patches, choose_patches, dense_probe, patch_labels
from components.evaluation.features.extract import Rows
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.features.patch_tokens import cells
from components.evaluation.image_level.knn import knn_predict
from components.evaluation.image_level.linear import LinearParams, linear_probe
from components.evaluation.probing.sample import ProbeSample
from components.learning.collate import normalize
from components.learning.vit import Features
from components.training.params import TrainingParams
from components.training.probe_params import DenseParams, LinearProbeParams, ProbeParams

DENSE = ("/miou", "/pixel_accuracy")  # ends of the dense scores' names
TOKENS = 1 << 15  # patch tokens a forward pass at most
ProbeScores = dict[str, float]


@dataclass(frozen=True)
class ProbeFeatures:
    """What a network makes of the sample."""

    cls: Rows | None  # [n, D] of the labelled images
    fitted: Rows | None  # [m, D], tokens of the patches that the dense probe is fitted on
    held_out: Rows | None  # [h, g * g, D], tokens of the pictures it is scored on

    @property
    def finite(self) -> bool:
        """Whether the network has not diverged."""
        return all(np.isfinite(part).all() for part in (self.cls, self.fitted, self.held_out) if part is not None)


class Prober:
    """Scores networks on ``sample``; names of scores begin with ``probe/``.

    kNN and linear accuracy are shares (0 ... 1) of the held-out images, the dense scores of their pixels.
    """

    def __init__(self, sample: ProbeSample, params: TrainingParams, device: torch.device) -> None:
        self.sample, self.params, self._device = sample, params, device
        if sample.dense is not None:
            assert params.probe.dense is not None
            dense = sample.dense
            self._grid = dense.images.shape[1] // params.vit.patch_size
            labels = patch_labels(dense.masks[: dense.train], self._grid, dense.classes)
            generator = np.random.default_rng([params.probe.seed, 0xDE25E])
            self._chosen = choose_patches(labels, params.probe.dense.patches, generator)
            self._labels = np.concatenate([row[at] for row, at in zip(labels, self._chosen, strict=True)])
            self._pictures = np.repeat(np.arange(dense.train), [len(at) for at in self._chosen])

    def by_dataset(self, scores: ProbeScores) -> list[tuple[ProbeScores, tuple[str, str]]]:
        """``scores`` divided by what they are measured on, with name and digest of that."""
        dense = {name: value for name, value in scores.items() if name.endswith(DENSE)}
        rest = {name: value for name, value in scores.items() if name not in dense}
        found = []
        if rest and self.sample.labelled is not None:
            found.append((rest, (f"{self.sample.labelled.name}-train-side", self.sample.labelled.digest)))
        if dense and self.sample.dense is not None:
            found.append((dense, (f"{self.sample.dense.name}-probe", self.sample.dense.digest)))
        return found

    @torch.no_grad()
    def features(self, backbone: nn.Module, dtype: torch.dtype) -> ProbeFeatures:
        """Forward passes over the sample; under ZeRO-3 every rank must make them.

        ``backbone`` must be in eval mode. No generator is touched.
        """
        labelled, dense = self.sample.labelled, self.sample.dense
        cls = fitted = held_out = None
        if labelled is not None:
            rows = [out.cls.float().cpu() for out in self._forward(backbone, labelled.squares, dtype)]
            cls = torch.cat(rows).numpy()
        if dense is not None:
            parts: list[list[npt.NDArray[np.float32]]] = [[], []]
            number = 0
            for out in self._forward(backbone, dense.images, dtype):
                for tokens in out.patches.float().cpu().numpy():
                    fit = number < dense.train
                    parts[not fit].append(tokens[self._chosen[number]] if fit else tokens)
                    number += 1
            fitted, held_out = np.concatenate(parts[0]), np.stack(parts[1])
        return ProbeFeatures(cls, fitted, held_out)

    def scores(self, found: ProbeFeatures) -> ProbeScores:
        """The scores of a network's features; equal features give equal scores."""
        scores: ProbeScores = {}
        if found.cls is not None:
            scores |= self._classified(found.cls)
        if found.fitted is not None and found.held_out is not None:
            scores |= self._segmented(found.fitted, found.held_out)
        return scores

    def raw(self) -> ProbeScores:
        """The same scores of raw pixels: what the images give without a network."""
        labelled, dense = self.sample.labelled, self.sample.dense
        scores: ProbeScores = {}
        if labelled is not None:
            scores |= self._classified(labelled.raw)
        if dense is not None:
            tokens = pixels_of_patches(dense.images, self._grid)
            fitted = [tokens[number][at] for number, at in enumerate(self._chosen)]
            scores |= self._segmented(np.concatenate(fitted), tokens[dense.train :])
        return scores

    def _classified(self, features: Rows) -> ProbeScores:
        labelled, probe = self.sample.labelled, self.params.probe
        assert labelled is not None
        bank, scores = labelled.bank, {}
        groups = None if labelled.groups is None else labelled.groups[:bank]
        for task, labels in labelled.labels.items():
            name = f"probe/{labelled.name}/{task}"
            neighbours = knn_predict(
                LabelledFeatures(features[:bank], labels[:bank]), features[bank:], probe.neighbours
            )
            scores[f"{name}/knn{probe.neighbours}"] = float(np.mean(neighbours == labels[bank:]))
            if probe.linear is not None:
                params = linear_params(probe.linear, probe)
                probed = linear_probe(features[:bank], labels[:bank], features[bank:], params, groups)
                scores[f"{name}/linear"] = float(np.mean(probed.predicted == labels[bank:]))
        return scores

    def _segmented(self, fitted: Rows, held_out: Rows) -> ProbeScores:
        dense, params = self.sample.dense, self.params.probe.dense
        assert dense is not None
        assert params is not None
        masks = dense.masks[dense.train :]
        numbers = linear_params(params, self.params.probe)
        found = dense_probe(Patches(fitted, self._labels, self._pictures), held_out, masks, dense.classes, numbers)
        return {f"probe/{dense.name}/miou": found.miou, f"probe/{dense.name}/pixel_accuracy": found.accuracy}

    def _forward(self, backbone: nn.Module, images: npt.NDArray[np.uint8], dtype: torch.dtype) -> Iterator[Features]:
        """Features of ``images`` [n, S, S, 3], batch by batch."""
        augment = self.params.augment
        grid = images.shape[1] // self.params.vit.patch_size
        batch = max(1, TOKENS // (grid * grid))
        for start in range(0, len(images), batch):
            pixels = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2)
            yield backbone(normalize(pixels, augment.mean, augment.std, self._device).to(dtype))


def linear_params(params: LinearProbeParams | DenseParams, probe: ProbeParams) -> LinearParams:
    """As the linear probe wants them."""
    return LinearParams(
        costs=list(params.costs), folds=params.folds, max_iterations=params.max_iterations, seed=probe.seed
    )


def pixels_of_patches(images: npt.NDArray[np.uint8], grid: int) -> Rows:
    """[n, S, S, 3] as the pixels of patches, [n, grid * grid, D] in 0 ... 1; one channel where all are gray."""
    if (images == images[..., :1]).all():
        images = images[..., :1]
    return cells(images, grid)


def mean_of(scores: ProbeScores, method: str) -> float | None:
    """The mean of a method's scores (``knn``, ``linear`` or ``dense``) over the tasks; None where there is none."""
    last = {"knn": "knn", "linear": "linear", "dense": "miou"}[method]
    found: Sequence[float] = [
        value for name, value in scores.items() if name.startswith("probe/") and name.split("/")[-1].startswith(last)
    ]
    return float(np.mean(found)) if found else None
