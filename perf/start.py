"""Processor time that a stage needs before it does anything, and that of a curate run of 61 small images.

    python -m perf start

Seconds of user and system time of a process of its own, with all its children; the least of three, because other work
on the cores makes all of them longer. A stage's start is the import of its modules, of MLflow and, where the stage
checks tables, of Great Expectations, and the open of a SQLite store that is there. The import of torch is a part of
it. The curate run has no models and one process.
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
TIMES = 3
STAGES = ("crawl", "curate", "dedup", "pretrain", "distill", "benchmark")
CHECKED = ("curate", "dedup")  # stages that check tables
CHECKS = "from components.quality.project import import_with\nimport_with(['expect_column_values_to_be_in_set'])"


def main() -> dict[str, object]:
    """Seconds of processor time."""
    torch = cpu("-c", "import torch")
    found: dict[str, object] = {"target": "5 s a stage", "import torch": torch}
    with tempfile.TemporaryDirectory() as folder:
        client = f"from components.tracking.store import open_client\nopen_client('sqlite:///{folder}/mlflow.db')"
        found["import MLflow, make a store"] = cpu("-c", client, times=1)
        found["import MLflow, open a store"] = cpu("-c", client)
        found["import Great Expectations"] = cpu("-c", CHECKS)
        for name in STAGES:
            script = f"import components.{name}.run, components.{name}.stage"
            own = cpu("-c", script)
            whole = cpu("-c", "\n".join([script, client, *([CHECKS] if name in CHECKED else [])]))
            loaded = torch if "torch" in imported(script) else 0.0
            found[f"start of {name}"] = {
                "all": whole, "torch itself": loaded, "without torch": round(whole - loaded, 2), "own modules": own,
            }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        found[f"curate of {IMAGES} images, new store"] = curate(Path(folder), 1)
        found[f"curate of {IMAGES} images"] = curate(Path(folder), TIMES)
    return found


def cpu(*arguments: str, times: int = TIMES, **environment: str) -> float:
    """Seconds of processor time of a Python process, the least of ``times``."""
    spent = []
    for _ in range(times):
        before = os.times()
        subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT, env={**os.environ, **environment}, check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return round(min(spent), 2)


def imported(script: str) -> set[str]:
    """The modules that ``script`` imports."""
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\nimport sys\nprint(*sys.modules)"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(done.stdout.split())


def prepare(folder: Path) -> None:
    """Small JPEGs, all different, and the crawl stage's output that names them."""
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


def curate(folder: Path, times: int) -> float:
    """The stage's command over what :func:`prepare` made."""
    sets = ["nsfw.enabled=false", "faces.enabled=false", "executor.workers=0"]
    return cpu(
        "-m", "components.curate", "run", "--params", "params/curate.yaml", "--crawl", str(folder / "crawl"),
        "--out", str(folder / "out"), "--report", str(folder / "report.json"),
        *(part for one in sets for part in ("--set", one)),
        times=times, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db",
    )  # fmt: skip
