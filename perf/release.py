"""A model's use beside its own forward pass: embedding, ONNX, and the memory of import, export and a large table.

``python -m perf release``. One thread a network on either side of a ratio, both sides in turn in one run, and processor
time. ``VITRAIL_PERF_LARGE=1`` measures the memory of ViT-g and of a million rows, too (15 GB of disk, 10 of memory).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from components.evaluation.features.extract import FeatureParams, extract, network, square
from components.evaluation.sets.labelled_set import ImageColumn
from components.images.decode import encode_jpeg
from components.learning.collate import normalize
from components.learning.export import ModelCard
from components.learning.vit import VisionTransformer, vit_config
from components.release.use.features import FeatureSpec, ImageFeatures, embed, pixels
from components.release.weights.export import save_model
from components.release.weights.graphs import export_onnx
from components.release.weights.load import EVALUATED_AT, MEAN, STD, LoadedModel

FORMS = ("huggingface", "official", "safetensors", "onnx", "torch-export")
SIDE, BATCH = 256, 16  # px of a side of a file, images a forward pass


def in_turn(rounds: int, **sides: Callable[[], Any]) -> dict[str, float]:
    """Seconds of processor time of each of ``sides``, which take turns, over all rounds.

    Of all threads, not of a clock: others may use the cores too. A first round does not count.
    """
    spent = dict.fromkeys(sides, 0.0)
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = time.process_time()
            run()
            spent[name] += (time.process_time() - start) * (number > 0)
    return spent


def model_of(name: str) -> LoadedModel:
    """A network of a released architecture with random weights, for 518 px and used at 224."""
    vit = vit_config(name, 518, 14)
    card = ModelCard(
        kind="imported", preset=name, vit=vit, mean=MEAN, std=STD, image_size=EVALUATED_AT, step=0,
        params_fingerprint="", data_digest="",
    )  # fmt: skip
    return LoadedModel(VisionTransformer(vit).eval(), card)


def pictures(count: int) -> list[bytes]:
    """JPEG files of smooth noise, which take as long to decode as photographs."""
    import cv2

    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (count, SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
    return [encode_jpeg(np.asarray(cv2.resize(one, (SIDE, SIDE)), np.uint8), 90) for one in small]


@torch.inference_mode()
def embedding(model: LoadedModel, rounds: int) -> dict[str, float]:
    """The forward pass' processor time over that of features from files, and what decoding alone would leave of it.

    A batch of each in turn. So the first is the rate from files over that of the forward pass on the same core.
    """
    files, spec = pictures(BATCH), FeatureSpec(batch=BATCH)
    seen = torch.zeros(BATCH, model.card.image_size, model.card.image_size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    images = normalize(seen, MEAN, STD, "cpu")
    pairs = [(str(number), data) for number, data in enumerate(files)]
    column, side = ImageColumn(pa.chunked_array([files]), "perf"), model.card.image_size
    extractor = network(model.backbone, MEAN, STD, side, FeatureParams())
    spent = in_turn(
        rounds,
        forward=lambda: model.backbone(images),
        embed=lambda: list(embed(model, pairs, spec)),
        extract=lambda: extract({"network": extractor}, column, BATCH),
        decode=lambda: [square(pixels(data), model.card.image_size) for data in files],
    )
    return {
        "images_a_second_of_processor_time": round(rounds * BATCH / spent["embed"], 2),
        "embed_over_forward_rate": round(spent["forward"] / spent["embed"], 3),
        "benchmark_features_over_forward_rate": round(spent["forward"] / spent["extract"], 3),
        "forward_over_forward_and_decoding": round(spent["forward"] / (spent["forward"] + spent["decode"]), 3),
    }


@torch.inference_mode()
def onnx(model: LoadedModel, rounds: int) -> dict[str, float]:
    """Processor time of onnxruntime over PyTorch's, by batch."""
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
            spent = in_turn(rounds, torch=lambda x=images: model.backbone(x), onnx=lambda x=given: session.run(None, x))
            found[f"onnx_over_torch_batch_{batch}"] = round(spent["onnx"] / spent["torch"], 3)
    return found


def table(rows: int) -> dict[str, float]:
    """Peak resident memory of a table and of arrays of ``rows`` features of 384 numbers, beyond the libraries'."""
    with tempfile.TemporaryDirectory() as folder:
        _alone(f"from perf.release import source; source({rows}, {folder!r})")
        found = {}
        for form in ("parquet", "npy"):
            peak = _alone(f"from perf.release import write_rows; write_rows({folder!r}, {form!r})")
            found[f"{form}_mb"] = round(peak / 1e6, 1)
    return found


def source(rows: int, folder: str) -> None:
    """A table of ``rows`` images, and a small model."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    save_model(model_of("vitt"), Path(folder) / "model")
    with pq.ParquetWriter(f"{folder}/images.parquet", pa.schema({"key": pa.string(), "image": pa.binary()})) as writer:
        for start in range(0, rows, 10_000):
            keys = [f"image-{number}" for number in range(start, min(start + 10_000, rows))]
            writer.write_table(pa.table({"key": keys, "image": pa.array([b"jpeg"] * len(keys), pa.binary())}))


def write_rows(folder: str, form: Literal["parquet", "npy"]) -> None:
    """Features of the table of :func:`source` where the network's share is left out: numbers are drawn."""
    from components.release.use import embed as module

    block = np.random.default_rng(0).standard_normal((1024, 384)).astype(np.float32)

    def drawn(model: LoadedModel, images: Iterable[tuple[str, Any]], spec: FeatureSpec) -> Iterator[ImageFeatures]:
        for number, (key, _) in enumerate(images):
            yield ImageFeatures(key, "", 256, 256, (16, 16), cls=block[number % len(block)])

    module.embed = drawn  # type: ignore[assignment]
    module.embed_all(
        f"{folder}/model", f"{folder}/images.parquet", Path(folder) / form, module.EmbedParams(form=form, device="cpu")
    )


def memory(name: str, forms: Sequence[str] = FORMS) -> dict[str, float]:
    """Peak resident memory of import and of export in each of ``forms``, over the weights' size.

    What Python and its libraries take is not counted.
    """
    with tempfile.TemporaryDirectory() as folder:
        _alone(f"from perf.release import write; write({name!r}, {folder!r})")
        size = Path(folder, "official.pth").stat().st_size
        taken = {"weights_gb": round(size / 1e9, 2)}
        steps = {"import": ["import", f"{folder}/official.pth", "--out", f"{folder}/own"]} | {
            form: ["export", "--model", f"{folder}/own", "--to", form, "--out", f"{folder}/{form}.pt2"]
            for form in forms
        }
        for what, arguments in steps.items():
            peak = _alone(f"from components.release.run import main; main({arguments!r})")
            taken |= {f"{what}_gb": round(peak / 1e9, 2), f"{what}_copies": round(peak / size, 2)}
    return taken


def write(name: str, folder: str) -> None:
    """A file as Meta's, of random weights."""
    from components.release.weights.writers import export_official

    export_official(model_of(name), Path(folder) / "official.pth")


def _alone(code: str) -> int:
    """Bytes of resident memory that ``code`` adds at its peak, in a process of its own, those it starts included.

    The libraries of the first process do not count; those of others do.
    """
    around = f"""
import json, threading, time, psutil, torch, safetensors.torch
import components.release.weights.load, components.release.weights.writers

def peak():  # not ru_maxrss, which a new process takes over from the one that started it
    return 1024 * int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])

def watch():
    while True:
        sizes = []
        for each in [me, *me.children(recursive=True)]:
            try:
                sizes.append(each.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        together.append(sum(sizes))
        time.sleep(0.02)

me, together, before = psutil.Process(), [], peak()
if __name__ == "__main__":
    threading.Thread(target=watch, daemon=True).start()
    {code}
    print(json.dumps(max(peak(), *together) - before))
"""
    done = subprocess.run([sys.executable, "-c", around], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def main(rounds: int = 5) -> dict[str, object]:
    """All figures."""
    torch.set_num_threads(1)
    vits = model_of("vits")
    found: dict[str, object] = {"vits": embedding(vits, rounds) | onnx(vits, rounds)}
    found["vitl"] = memory("vitl")
    sizes = [100_000]
    if os.environ.get("VITRAIL_PERF_LARGE"):
        found["vitg"] = memory("vitg", ("huggingface", "official", "safetensors"))
        sizes.append(1_000_000)
    found["rows"] = {str(rows): table(rows) for rows in sizes}
    return found
