"""Models in the registry: a new version is the candidate, and becomes champion by the scores that a gate asks for."""

from __future__ import annotations

import datetime
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.errors import VitrailError
from components.evaluation.statistics.gate import GateParams, GateRow, by_column, read_scores, shortfalls
from components.learning.export import weights_digest
from components.params import load_params
from components.release.serve.serving import COLUMNS, ServeParams
from components.release.weights.export import save_model
from components.release.weights.load import LoadedModel
from components.tracking.pyfunc import Code, Interface, SignatureColumn, save
from components.tracking.registry import CANDIDATE, CHAMPION, ModelVersion, Registry

WEIGHTS_TAG = "vitrail.weights"  # weights_digest of the backbone
PACKAGE = Path(__file__).resolve().parents[2]
# What components/release/serve/serving.py and what it calls import; mlflow itself is added by MLflow.
REQUIREMENTS = (
    "ada-url", "aiohttp", "mlflow", "numpy", "opencv-python-headless", "pandas", "pi-heif", "pillow", "pyarrow",
    "pydantic", "pyyaml", "safetensors", "scipy", "simplejpeg", "tldextract", "torch",
)  # fmt: skip
# Not "binary": MLflow decodes such a column of JSON in all rows, and fails where a row has none.
INTERFACE = Interface(
    inputs=[SignatureColumn(*column) for column in zip(COLUMNS, ("any", "string", "string", "any"), strict=True)],
    outputs=[
        SignatureColumn("error", "string", required=True),
        SignatureColumn("height", "long", required=True),
        SignatureColumn("width", "long", required=True),
        SignatureColumn("grid", "any", required=True),
        SignatureColumn("cls", "floats"),
        SignatureColumn("mean", "floats"),
        SignatureColumn("patches", "any"),
    ],
    params={"features": "cls"},
)


def build(model: LoadedModel, out: Path, params: ServeParams) -> None:
    """Write the folder ``out`` that ``mlflow models serve`` takes: safetensors, code as files, no pickle.

    ``out`` must not exist. Projection heads are kept where ``model`` has some: a teacher needs them, no server does.
    """
    with tempfile.TemporaryDirectory(prefix="vitrail-served-") as folder:
        weights = Path(folder) / "model"
        if model.dino_head is None:  # and the card may still name some
            model = LoadedModel(model.backbone, model.card.model_copy(update={"dino_head": None, "ibot_head": None}))
        save_model(model, weights)
        code = Code(PACKAGE / "release/serve/served_model.py", PACKAGE, REQUIREMENTS)
        save(out, code, weights, INTERFACE, params.model_dump(mode="json"))


def register(model: LoadedModel, name: str, params: ServeParams, registry: Registry | None = None) -> ModelVersion:
    """Put ``model`` into the registry as a new version of ``name``, with the alias ``candidate``.

    Raises:
        VitrailError: the registry cannot be reached, or refuses the name.
    """
    registry = registry or Registry()
    registry.client(create=True)  # before gigabytes are written
    card = model.card
    tags = {
        WEIGHTS_TAG: weights_digest(model.backbone), "vitrail.preset": card.preset, "vitrail.kind": card.kind,
        "vitrail.step": str(card.step), "vitrail.data": card.data_digest, "vitrail.source": card.source or "",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vitrail-register-") as folder:
        build(model, Path(folder) / "served", params)
        version = registry.register(Path(folder) / "served", name, tags)
    registry.point(CANDIDATE, version)
    return version


def promote(name: str, scores: Path, gate: Path, registry: Registry | None = None) -> ModelVersion:
    """Let ``champion`` of ``name`` mean its candidate, if the scores reach what ``gate`` asks for.

    Args:
        name: of the registered model.
        scores: what the benchmark stage wrote when the candidate was among its checkpoints.
        gate: ``params/gate.yaml``.

    Raises:
        VitrailError: the gate asks for nothing of this model, the scores are of other weights or fall short, or the
            registry cannot be reached.
    """
    registry = registry or Registry()
    version = registry.version(f"models:/{name}@{CANDIDATE}")
    asked, reached = _reached(version, scores, load_params(gate, GateParams), gate)
    history = registry.champions(name)
    if history and history[-1] == version.number:
        raise VitrailError(f"{version.source} is the champion already")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    tags = {
        "vitrail.promoted": now,
        "vitrail.gate": hashlib.sha256(json.dumps([row.model_dump() for row in asked]).encode()).hexdigest(),
        "vitrail.scores": json.dumps(reached)[:5000],
    }
    registry.crown(version, [*history, version.number], tags)
    return version


def rollback(name: str, registry: Registry | None = None) -> tuple[int, ModelVersion]:
    """Let ``champion`` of ``name`` mean what it meant before; returns the number it leaves, and the new champion.

    Raises:
        VitrailError: there was none before, that version is gone, or the registry cannot be reached.
    """
    registry = registry or Registry()
    history = registry.champions(name)
    if len(history) < 2:
        raise VitrailError(f"models:/{name}@{CHAMPION}: there was no other champion before, so nothing to go back to")
    version = registry.version(f"models:/{name}/{history[-2]}")
    registry.crown(version, history[:-1])
    return history[-1], version


def _reached(
    version: ModelVersion, folder: Path, gate: GateParams, named: Path
) -> tuple[list[GateRow], Mapping[str, Any]]:
    """The gate's rows for this version, and its scores in their columns."""
    content = read_scores(folder)
    weights = version.tags.get(WEIGHTS_TAG)
    models = content.get("models", {})
    mine = [model for model, about in models.items() if weights and about["weights"] == weights]
    if not mine:
        raise VitrailError(
            f"{folder}: no scores of {version.source} (its weights are {str(weights)[:12]}); run the benchmark with "
            f"--checkpoints {version.source}"
        )
    name, scores = mine[0], by_column(content)
    rows = [row for row in gate.rows if row.model in (None, name)]
    if not rows:
        raise VitrailError(f"{named}: no row is for {name}, so nothing would be checked; write one first")
    if short := shortfalls(scores, gate, name):
        raise VitrailError(f"{named}: {version.source} is not promoted: " + "; ".join(short))
    columns = {(row.benchmark, row.task, row.method) for row in rows}
    return rows, {"/".join(column): scores[name, column].value for column in sorted(columns)}
