"""A run's curves and parameters, from an exported model or from the state of a run that is not over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.errors import VitrailError
from components.params import load_params
from components.planning.diagnosis import Record
from components.training.loop import Curves
from components.training.params import TrainingParams


def load_record(run: Path, preset: Path | None, manifest: Path | None = None) -> Record:
    """The record of ``run``: an exported model, a run's folder in scratch, or one of its checkpoints.

    Args:
        run: such as ``data/pretrain/vitt`` or ``scratch/pretrain/vitt``.
        preset: its parameters; None: the file in ``params/`` of the run's kind and preset.
        manifest: its training set, whose rows are counted.

    Raises:
        VitrailError: no curves there, no point in them yet, or no preset of that name.
    """
    curves = _curves(run)
    if not curves.points:
        raise VitrailError(f"{run}: no point of the curves yet; wait for run.log_every steps")
    path = preset or _preset(run)
    if not path.is_file():
        raise VitrailError(f"{path}: not there; name the run's preset with --params")
    return Record(load_params(path, _kind(path)), curves, _rows(manifest) if manifest else None)


def _curves(run: Path) -> Curves:
    exported = run / "curve.json"
    if exported.is_file():
        return Curves(**_read(exported))
    found = [run / "manifest.json"] if run.name.startswith("step-") else sorted(run.glob("step-*/manifest.json"))
    if not found or not found[-1].is_file():
        raise VitrailError(f"{run}: no curve.json and no checkpoint; name an exported model, or a run's scratch folder")
    return Curves(**_read(found[-1])["shared"]["curves"])


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise VitrailError(f"{path}: damaged; name another checkpoint of the run") from None
    return content


def _preset(run: Path) -> Path:
    folder = run.parent if run.name.startswith("step-") else run
    return Path("params", folder.parent.name, f"{folder.name}.yaml")


def _kind(preset: Path) -> type[TrainingParams]:
    if preset.parent.name != "distill":
        return TrainingParams
    from components.distill.method import DistillParams

    return DistillParams


def _rows(manifest: Path) -> int:
    import pyarrow.parquet as pq

    from components.tables.parts import parts
    from components.tables.schemas import MANIFEST

    return sum(int(pq.read_metadata(part).num_rows) for part in parts(manifest, MANIFEST))
