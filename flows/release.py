"""Flows ``release``: take a model in, compute features, write a model out, make the candidate champion.

prefect deployment run release/embed --param model=models:/vits@champion --param images=photos --param out=data/features
"""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State

from flows.launch import run_command

Feature = Literal["cls", "mean", "patches"]
ExportLayout = Literal["safetensors", "huggingface", "official", "onnx", "torch-export"]


@flow(name="release")
def import_model(source: str, out: str) -> State[Any]:
    """Take the model that ``source`` names in as the folder ``out``."""
    return run_command("release", import_arguments(source, out))


@flow(name="release")
def embed(
    model: str,
    images: str,
    out: str,
    features: list[Feature] | None = None,
    layout: Literal["parquet", "npy"] = "parquet",
) -> State[Any]:
    """Write the features of ``images`` to the folder ``out``; a run that was stopped is carried on."""
    return run_command("release", embed_arguments(model, images, out, features or ["cls"], layout))


@flow(name="release")
def export(model: str, out: str, layout: ExportLayout = "safetensors", licence: str = "") -> State[Any]:
    """Write ``model`` in another layout to ``out``."""
    return run_command("release", export_arguments(model, out, layout, licence))


@flow(name="release")
def promote(name: str, scores: str = "data/benchmark", gate: str = "params/gate.yaml") -> State[Any]:
    """Make the candidate of the registered model ``name`` its champion, if ``scores`` reach what ``gate`` asks for."""
    return run_command("release", promote_arguments(name, scores, gate))


def import_arguments(source: str, out: str) -> list[str]:
    """Of ``python -m components.release``."""
    return ["import", f"--out={out}", "--", source]


def embed_arguments(model: str, images: str, out: str, features: list[Feature], layout: str) -> list[str]:
    """Of ``python -m components.release``."""
    return [
        "embed",
        f"--model={model}",
        f"--images={images}",
        f"--out={out}",
        f"--format={layout}",
        "--features",
        *features,
    ]


def export_arguments(model: str, out: str, layout: str, licence: str) -> list[str]:
    """Of ``python -m components.release``."""
    return ["export", f"--model={model}", f"--out={out}", f"--to={layout}", f"--licence={licence}"]


def promote_arguments(name: str, scores: str, gate: str) -> list[str]:
    """Of ``python -m components.release``."""
    return ["promote", f"--name={name}", f"--scores={scores}", f"--gate={gate}"]
