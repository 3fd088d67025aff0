"""Plug-ins by ``package.module:name``: a descriptor, a benchmark and a loss are one function and one line of params."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from components.dedup.pool.scratch import described_digest
from components.descriptors.kinds import OwnDescriptorParams, ReadyParams, load_descriptor
from components.descriptors.views import WHOLE, squash
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile, OwnBenchmarkParams, load_benchmark
from components.evaluation.sets.labelled_set import Benchmark, ImageFiles
from components.input_paths import input_paths
from components.learning.objective import ObjectiveParams, Output, Targets, losses
from components.params import parse_params
from components.plugins import load_plugin
from components.storage import StorageParams

STORAGE = StorageParams(root="data")


class MeanColour:
    """A descriptor: the mean of each channel, as unit rows of 3 numbers."""

    def __init__(self, params: OwnDescriptorParams) -> None:
        self.dim, self.side = 3, int(params.settings["side"])

    def prepare(self, rgb: np.ndarray) -> np.ndarray:
        return squash(rgb, self.side)

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        rows = np.stack([picture.reshape(-1, 3).mean(0) for picture in pictures]).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def two_classes(name: str, params: OwnBenchmarkParams) -> Benchmark:
    """A benchmark of the files that ``settings`` name."""
    files = [Path(each) for each in params.settings["files"]]
    labels = {"kind": np.array([0, 1, 0, 1], np.int64)}
    held_out = np.array([False, False, True, True])
    return Benchmark(
        name, [f"{name}/{at}" for at in range(4)], ImageFiles(files), labels, {"kind": ["a", "b"]}, held_out
    )


def spread(student: Output, targets: Targets) -> torch.Tensor:
    """A loss: the mean square of the student's class tokens."""
    return student.cls.square().mean()


def test_a_descriptor_of_ones_own_is_named_in_the_parameters() -> None:
    params = OwnDescriptorParams(kind="plugin", call=f"{__name__}:MeanColour", settings={"side": 8})
    assert isinstance(params, ReadyParams)  # nothing is learned from the pool
    descriptor = load_descriptor(params, Path("unused"), STORAGE)
    red, blue = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 90
    rows = descriptor.embed([descriptor.prepare(red), descriptor.prepare(blue)])
    assert np.allclose(rows, [[1, 0, 0], [0, 0, 1]])


def test_descriptors_are_made_again_when_their_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = OwnDescriptorParams(kind="plugin", call="mine:make")
    found = []
    for code in ("one", "two"):
        Path("mine.py").write_text(code)
        found.append(described_digest(params, WHOLE, 512, "images", STORAGE))
    assert found[0] != found[1]
    assert list(input_paths(params)) == [("call", "mine.py")]


def test_a_benchmark_of_ones_own_is_named_in_the_parameters(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    section = {
        "kind": "plugin",
        "call": f"{__name__}:two_classes",
        "settings": {"files": [str(file) for file in files]},
    }
    known = parse_params({"mine": section}, BenchmarksFile, "benchmarks.yaml").scored
    found = load_benchmark("mine", known["mine"])
    assert (found.keys[0], int(found.test.sum()), len(found.digests)) == ("mine/0", 2, 4)
    wrong = OwnBenchmarkParams(kind="plugin", call=f"{__name__}:no_benchmark")
    with pytest.raises(VitrailError, match="must return a Benchmark"):
        load_benchmark("wrong", wrong)


def no_benchmark(name: str, params: Any) -> SimpleNamespace:
    """Returns something else."""
    return SimpleNamespace()


def test_a_loss_of_ones_own_is_a_weighted_term_with_a_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    cls = torch.randn(4, 6, generator=generator, requires_grad=True)
    logits = torch.randn(4, 5, generator=generator)
    student = Output(cls, logits, None, None)
    targets = Targets(torch.randn(4, 5, generator=generator).softmax(1), None)
    term = {"name": "spread", "call": f"{__name__}:spread", "weight": 0.5}
    without = losses(student, targets, torch.empty(0), ObjectiveParams(koleo_weight=0))
    found = losses(
        student, targets, torch.empty(0), parse_params({"koleo_weight": 0, "own": [term]}, ObjectiveParams, "")
    )
    assert torch.allclose(found.terms["spread"], 0.5 * cls.square().mean())
    assert torch.allclose(found.total, without.total + found.terms["spread"])
    found.total.backward()
    assert torch.allclose(cls.grad, cls / cls.numel())  # type: ignore[arg-type]
    with pytest.raises(VitrailError, match="is a term already"):
        parse_params({"own": [term | {"name": "koleo"}]}, ObjectiveParams, "")


def test_a_plug_in_in_the_current_folder_is_found_whoever_started_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *filter(None, sys.path)])
    Path("plug_in_of_this_test.py").write_text("make = 7\n")
    assert load_plugin("plug_in_of_this_test:make", "key") == 7
