"""A backbone as an ONNX file or a ``torch.export`` program, checked before it takes its name."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.errors import VitrailError
from components.release.exportable import ExportableBackbone, OnnxBackbone
from components.release.load import LoadedModel

TOLERANCE = 1e-4  # largest difference from PyTorch's own that is let out, relative to the largest number


def export_onnx(model: LoadedModel, out: Path) -> None:
    """Write ``out``: input ``images`` [B, 3, H, W] normalised, outputs ``cls`` [B, D] and ``patches`` [B, N, D].

    Batch, height and width are dynamic. Mean, std, patch and license are in the file's metadata. The file is run in
    onnxruntime at three sizes, rectangles among them, and compared before it takes its name. Above 2 GB weights are
    beside it as ``OUT.data``.

    Raises:
        VitrailError: onnx or onnxscript is missing, or the graph does not give the model's features.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError:
        raise VitrailError("ONNX needs two packages: pip install -c requirements.lock onnx onnxscript") from None
    graph = OnnxBackbone(model.backbone).eval()
    images, shapes = _example(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        path = Path(folder) / out.name
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
        _compare(model, _onnx_runner(path), out)
        for file in sorted(Path(folder).iterdir()):
            os.replace(file, out.parent / file.name)


def export_program(model: LoadedModel, out: Path) -> None:
    """Write ``out``, a ``torch.export`` program with the inputs and outputs of :func:`export_onnx`.

    Raises:
        VitrailError: the program does not give the model's features.
    """
    images, shapes = _example(model)
    with torch.no_grad():
        program = torch.export.export(_graph(model), (images,), dynamic_shapes=(shapes,))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        path = Path(folder) / out.name
        extra = {"vitrail.txt": "\n".join(f"{key}: {value}" for key, value in _facts(model).items())}
        torch.export.save(program, path, extra_files=extra)
        loaded = torch.export.load(path).module()
        _compare(model, lambda batch: loaded(batch), out)
        os.replace(path, out)


def _graph(model: LoadedModel) -> ExportableBackbone:
    return ExportableBackbone(model.backbone).eval()


def _example(model: LoadedModel) -> tuple[Tensor, dict[int, Any]]:
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
def _compare(model: LoadedModel, run: Callable[[Tensor], Any], out: Path) -> None:
    """Run at the table's own grid, a wide and a tall rectangle, one image and several."""
    vit = model.card.vit
    side, generator = vit.image_size // vit.patch_size, torch.Generator().manual_seed(0)
    for samples, rows, columns in ((1, side, side), (3, 2, 4), (2, 5, 3)):
        size = (rows * vit.patch_size, columns * vit.patch_size)
        images = torch.randn(samples, vit.in_channels, *size, generator=generator)
        expected = model.backbone(images)
        found = run(images)
        for name, ours, theirs in zip(("cls", "patches"), (expected.cls, expected.patches), found, strict=True):
            worst = float((ours - theirs).abs().max()) / max(1.0, float(ours.abs().max()))
            if not worst < TOLERANCE:
                raise VitrailError(
                    f"{out}: {name} at {size[0]} x {size[1]} px differ by {worst:.2g}; nothing is written"
                )
