"""A model's use beside its own forward pass: embedding, ONNX, and the memory of import and export.

``python -m perf release``. One thread a network. Both sides of a ratio take turns in one run, and of each the quickest
counts. ``VITRAIL_PERF_LARGE=1`` measures the memory of ViT-g, too (10 GB of disk and of memory).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.images.decode import encode_jpeg
from components.learning.collate import normalize
from components.learning.export import ModelCard
from components.learning.vit import VisionTransformer, vit_config
from components.release.features import FeatureSpec, embed
from components.release.graphs import export_onnx
from components.release.load import EVALUATED_AT, MEAN, STD, LoadedModel

IMAGES, SIDE, BATCH = 64, 256, 16  # pictures, px of a side of a file, images a forward pass


def quickest(rounds: int, **sides: Callable[[], Any]) -> dict[str, float]:
    """The least seconds of each of ``sides``, which take turns."""
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def model_of(name: str) -> LoadedModel:
    """A network of a released architecture with random weights, for 518 px and used at 224."""
    vit = vit_config(name, 518, 14)
    card = ModelCard(
        kind="imported", preset=name, vit=vit, mean=MEAN, std=STD, image_size=EVALUATED_AT, step=0,
        params_fingerprint="", data_digest="",
    )  # fmt: skip
    return LoadedModel(VisionTransformer(vit).eval(), card)


def pictures() -> list[bytes]:
    """JPEG files of smooth noise, which take as long to decode as photographs."""
    import cv2

    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (IMAGES, SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
    return [encode_jpeg(np.asarray(cv2.resize(one, (SIDE, SIDE)), np.uint8), 90) for one in small]


@torch.inference_mode()
def embedding(model: LoadedModel, rounds: int) -> dict[str, float]:
    """Images a second from files, over those of the forward pass alone."""
    files, spec = pictures(), FeatureSpec(batch=BATCH)
    seen = torch.zeros(BATCH, model.card.image_size, model.card.image_size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    images = normalize(seen, MEAN, STD, "cpu")
    pairs = [(str(number), data) for number, data in enumerate(files)]
    best = quickest(
        rounds,
        forward=lambda: [model.backbone(images) for _ in range(IMAGES // BATCH)],
        embed=lambda: list(embed(model, pairs, spec)),
    )
    return {
        "images_a_second": round(IMAGES / best["embed"], 2),
        "embed_over_forward_rate": round(best["forward"] / best["embed"], 3),
    }


@torch.inference_mode()
def onnx(model: LoadedModel, rounds: int) -> dict[str, float]:
    """Seconds of onnxruntime over PyTorch's, by batch."""
    import onnxruntime

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, Path(folder) / "m.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(f"{folder}/m.onnx", options, providers=["CPUExecutionProvider"])
        for batch in (1, 16):
            images = torch.randn(batch, 3, model.card.image_size, model.card.image_size)
            given = {"images": images.numpy()}
            best = quickest(rounds, torch=lambda x=images: model.backbone(x), onnx=lambda x=given: session.run(None, x))
            found[f"onnx_over_torch_batch_{batch}"] = round(best["onnx"] / best["torch"], 3)
    return found


def memory(name: str) -> dict[str, float]:
    """Peak resident memory of import and of export, beyond what Python and its libraries take, over the weights'."""
    with tempfile.TemporaryDirectory() as folder:
        _alone(f"from perf.release import write; write({name!r}, {folder!r})")
        size = Path(folder, "official.pth").stat().st_size
        taken = {"weights_gb": round(size / 1e9, 2)}
        for what, arguments in (
            ("import", ["import", f"{folder}/official.pth", "--out", f"{folder}/own"]),
            ("export", ["export", "--model", f"{folder}/own", "--to", "huggingface", "--out", f"{folder}/hf"]),
        ):
            peak = _alone(f"from components.release.run import main; main({arguments!r})")
            taken |= {f"{what}_gb": round(peak / 1e9, 2), f"{what}_copies": round(peak / size, 2)}
    return taken


def write(name: str, folder: str) -> None:
    """A file as Meta's, of random weights."""
    from components.release.writers import export_official

    export_official(model_of(name), Path(folder) / "official.pth")


def _alone(code: str) -> int:
    """Bytes of resident memory that ``code`` adds at its peak, in a process of its own."""
    around = (
        "import json, torch, safetensors.torch, components.release.load, components.release.writers\n"
        # Not ru_maxrss, which a new process takes over from the one that started it.
        "peak = lambda: 1024 * int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])\n"
        f"before = peak()\n{code}\nprint(json.dumps(peak() - before))"
    )
    done = subprocess.run([sys.executable, "-c", around], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def main(rounds: int = 5) -> dict[str, object]:
    """All figures."""
    torch.set_num_threads(1)
    vits = model_of("vits")
    found: dict[str, object] = {"vits": embedding(vits, rounds) | onnx(vits, rounds)}
    found["vitl"] = memory("vitl")
    if os.environ.get("VITRAIL_PERF_LARGE"):
        found["vitg"] = memory("vitg")
    return found
