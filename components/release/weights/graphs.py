"""A backbone as an ONNX file or a ``torch.export`` program, checked before it takes its name."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from components.errors import VitrailError
from components.release.weights.export import save_model
from components.release.weights.exportable import ExportableBackbone, OnnxBackbone
from components.release.weights.load import LoadedModel, load_model

TOLERANCE = 1e-4  # largest difference from PyTorch's own that is let out, relative to the largest number


class Example(NamedTuple):
    """Images, and the features that the model itself gives them."""

    images: Tensor  # [B, 3, H, W]
    cls: Tensor  # [B, D]
    patches: Tensor  # [B, N, D]


def export_onnx(model: LoadedModel, out: Path, *, keep: bool = True) -> None:
    """Write ``out``: input ``images`` [B, 3, H, W] normalised, outputs ``cls`` [B, D] and ``patches`` [B, N, D].

    Batch, height and width are dynamic. Mean, std, patch and license are in the file's metadata. The file is run in
    onnxruntime at three sizes, rectangles among them, and compared before it takes its name. Above 2 GB weights are
    beside it as ``OUT.data``.

    Args:
        model: on the CPU.
        out: the file, replaced as a whole.
        keep: False takes little more memory than the weights. They are let go of, so the model is empty afterwards,
            and another process reads them from a folder beside ``out`` and writes the graph: torch's exporter holds
            weights as long as its process lives, and onnxruntime needs room for its own (see docs/decisions.md).

    Raises:
        VitrailError: onnx or onnxscript is missing, or the graph does not give the model's features.
    """
    try:
        import onnx  # noqa: F401 - both are needed where the graph is written
        import onnxscript  # noqa: F401
    except ImportError:
        raise VitrailError("onnx and onnxscript are not installed: make install") from None
    examples = _examples(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        path = Path(folder) / "graph" / out.name
        path.parent.mkdir()
        if keep:
            _write_onnx(model, path)
        else:
            weights = Path(folder) / "weights"
            save_model(model, weights)
            _let_go(model)
            _apart(_write_onnx_of, weights, path)
        _compare(examples, _onnx_runner(path), out)
        for file in sorted(path.parent.iterdir()):
            os.replace(file, out.parent / file.name)


def _write_onnx(model: LoadedModel, path: Path) -> None:
    """The graph of ``model``, as torch's exporter makes it, with the model's facts."""
    import onnx

    graph = OnnxBackbone(model.backbone).eval()
    images, shapes = _traced(model)
    notices = logging.getLogger("torch.onnx")
    level = notices.level
    notices.setLevel(logging.ERROR)  # that torchvision, which is not needed, is not there
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph, (images,), dynamo=True, dynamic_shapes=(shapes,), input_names=["images"],
            output_names=["cls", "patches"], optimize=True, verbose=False,
        )  # fmt: skip
    notices.setLevel(level)
    assert program is not None
    program.model.metadata_props.update({key: str(value) for key, value in _facts(model).items()})
    large = sum(p.numel() * 4 for p in graph.parameters()) > 1 << 30
    program.save(path, external_data=large)
    onnx.checker.check_model(str(path))


def _write_onnx_of(weights: Path, path: Path) -> None:
    _write_onnx(load_model(weights), path)


def _apart(work: Callable[[Path, Path], None], *paths: Path) -> None:
    """Do ``work`` in a process of its own, whose memory is free afterwards.

    Raises:
        VitrailError: the process was ended, as it is where memory runs out; or as ``work``.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(work, *paths).result()
        except BrokenProcessPool:
            raise VitrailError(
                f"{paths[-1].name}: the process that writes it was ended; is there enough memory?"
            ) from None


def export_program(model: LoadedModel, out: Path, *, keep: bool = True) -> None:
    """Write ``out``, a ``torch.export`` program with the arguments, inputs and outputs of :func:`export_onnx`.

    Raises:
        VitrailError: the file's name does not end in .pt2, or the program does not give the model's features.
    """
    if out.suffix != ".pt2":
        raise VitrailError(f"{out}: torch.export opens files whose names end in .pt2")
    examples = _examples(model)
    images, shapes = _traced(model)
    with torch.no_grad():
        program = torch.export.export(_graph(model), (images,), dynamic_shapes=(shapes,))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        path = Path(folder) / out.name
        extra = {"vitrail.txt": "\n".join(f"{key}: {value}" for key, value in _facts(model).items())}
        torch.export.save(program, path, extra_files=extra)
        del program
        if not keep:
            _let_go(model)
        loaded = torch.export.load(path).module()
        _compare(examples, lambda batch: loaded(batch), out)
        os.replace(path, out)


def _graph(model: LoadedModel) -> ExportableBackbone:
    return ExportableBackbone(model.backbone).eval()


def _let_go(model: LoadedModel) -> None:
    """Free the weights: empty tensors take their place."""
    for module in (model.backbone, model.dino_head, model.ibot_head):
        for weights in () if module is None else module.parameters():
            weights.data = weights.data.new_empty(0)
    gc.collect()


def _traced(model: LoadedModel) -> tuple[Tensor, dict[int, Any]]:
    """Images that no dimension of which is special, and which dimensions are free."""
    patch = model.card.vit.patch_size
    dynamic = torch.export.Dim.DYNAMIC
    return torch.zeros(2, model.card.vit.in_channels, 3 * patch, 5 * patch), {0: dynamic, 2: dynamic, 3: dynamic}


def _facts(model: LoadedModel) -> dict[str, Any]:
    card = model.card
    return {
        "preset": card.preset, "patch_size": card.vit.patch_size, "image_size": card.image_size,
        "mean": list(card.mean), "std": list(card.std), "data_digest": card.data_digest,
    }  # fmt: skip


def _onnx_runner(path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: tuple(torch.from_numpy(np.asarray(x)) for x in session.run(None, {"images": batch.numpy()}))


@torch.no_grad()
def _examples(model: LoadedModel) -> list[Example]:
    """At the table's own grid, a wide and a tall rectangle, one image and several."""
    vit = model.card.vit
    side, generator = vit.image_size // vit.patch_size, torch.Generator().manual_seed(0)
    examples = []
    for samples, rows, columns in ((1, side, side), (3, 2, 4), (2, 5, 3)):
        size = (rows * vit.patch_size, columns * vit.patch_size)
        images = torch.randn(samples, vit.in_channels, *size, generator=generator)
        expected = model.backbone(images)
        examples.append(Example(images, expected.cls, expected.patches))
    return examples


@torch.no_grad()
def _compare(examples: list[Example], run: Callable[[Tensor], Any], out: Path) -> None:
    """Nothing where ``run`` gives the features of ``examples``."""
    for images, *expected in examples:
        height, width = images.shape[2:]
        for name, ours, theirs in zip(("cls", "patches"), expected, run(images), strict=True):
            worst = float((ours - theirs).abs().max()) / max(1.0, float(ours.abs().max()))
            if not worst < TOLERANCE:
                raise VitrailError(f"{out}: {name} at {height} x {width} px differ by {worst:.2g}; nothing is written")
