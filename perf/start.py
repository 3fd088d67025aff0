"""Processor time that a stage needs before it does anything: its imports, and a curate run of 61 small images.

    python -m perf start

Seconds of user and system time of a process of its own, with all its children. The curate run has no models, one
process, and a new SQLite store of MLflow; imports are those of each stage's module and of the two heavy libraries.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 61
STAGES = ("crawl", "curate", "dedup", "pretrain", "distill", "benchmark")


def main() -> dict[str, object]:
    """Seconds of processor time."""
    found: dict[str, object] = {"target": "5 s a stage"}
    found |= {f"import {name}": cpu("-c", f"import components.{name}.stage") for name in STAGES}
    found |= {f"import {name}": cpu("-c", f"import {name}") for name in ("great_expectations", "mlflow")}
    checks = "from components.quality.project import import_with\nimport_with(['expect_column_values_to_be_in_set'])"
    found["import great_expectations, as a stage does"] = cpu("-c", checks)
    with tempfile.TemporaryDirectory() as folder:
        client = f"from components.tracking.store import open_client\nopen_client('sqlite:///{folder}/mlflow.db')"
        found["import mlflow and open a new store, as a stage does"] = cpu("-c", client)
        found["import mlflow and open a store, as a stage does"] = cpu("-c", client)
    with tempfile.TemporaryDirectory() as folder:
        found[f"curate of {IMAGES} images"] = curate(Path(folder))
    return found


def cpu(*arguments: str, **environment: str) -> float:
    """Seconds of processor time of a Python process."""
    before = os.times()
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, check=True, stderr=subprocess.DEVNULL
    )
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return round(spent, 2)


def curate(folder: Path) -> float:
    """The stage's command over small JPEGs, all different."""
    from components.images.decode import encode_jpeg
    from components.storage import StorageParams
    from components.web.sources.sources_json import register

    rng = np.random.default_rng(0)
    (folder / "in").mkdir()
    (folder / "crawl").mkdir()
    for number in range(IMAGES):
        small = rng.integers(0, 256, (8, 8, 3), np.uint8)
        data = encode_jpeg(np.repeat(np.repeat(small, 16, 0), 16, 1), 80)
        (folder / "in" / f"{number:03d}.jpg").write_bytes(data)
    register(str(folder / "in"), StorageParams(root="data")).save(folder / "crawl")
    sets = ["nsfw.enabled=false", "faces.enabled=false", "executor.workers=0"]
    return cpu(
        "-m", "components.curate", "run", "--params", "params/curate.yaml", "--crawl", str(folder / "crawl"),
        "--out", str(folder / "out"), "--report", str(folder / "report.json"),
        *(part for one in sets for part in ("--set", one)),
        MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db",
    )  # fmt: skip
