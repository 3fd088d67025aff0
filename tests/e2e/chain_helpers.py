"""How the end-to-end tests make a small copy of the checkout, and run commands in it as a user would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from patience import PATIENCE

from flows.workspace import checkout_files

ROOT = Path(__file__).resolve().parents[2]

SMALL_PROBE: dict[str, Any] = {
    "probe.bank": 64,
    "probe.held_out": 32,
    "probe.dense": {"kind": "mosaic", "task": "type", "image_size": 48, "train": 8, "held_out": 4, "patches": 100},
}
# Small enough for seconds a stage; nothing is switched off.
SMALLEST: dict[str, dict[str, Any]] = {
    "params/site/demo.yaml": {"cells": 160, "exact": 8, "reencoded": 8, "resized": 8, "cropped": 8},
    "params/curate.yaml": {"executor.workers": 0},
    "params/pretrain/vitt.yaml": {
        "vit.embed_dim": 48,
        "vit.depth": 2,
        "vit.heads": 3,
        "heads.dino": {"prototypes": 64, "hidden": 64, "bottleneck": 32},
        "heads.ibot": {"prototypes": 64, "hidden": 64, "bottleneck": 32},
        "run.iterations": 8,
        "run.batch": 16,
        "run.log_every": 2,
        "run.checkpoint_every": 4,
    },
    "params/demo/dedup.yaml": {"calibration.copies": 60, "executor.workers": 0, "retrieval.how.k": 8},
    "params/demo/pretrain/vitt.yaml": SMALL_PROBE,
    "params/demo/distill/vitxt.yaml": SMALL_PROBE,
    "params/demo/benchmark.yaml": {"pca.photographs": ["chelsea"]},
    "params/distill/vitxt.yaml": {
        "vit.embed_dim": 32,
        "vit.depth": 2,
        "heads.dino": {"prototypes": 64, "hidden": 64, "bottleneck": 32},
        "heads.ibot": {"prototypes": 64, "hidden": 64, "bottleneck": 32},
        "run.iterations": 4,
        "run.batch": 16,
        "run.log_every": 2,
        "run.checkpoint_every": 2,
    },
    "params/protocols/demo.yaml": {
        "linear.costs": [0.01],
        "linear.max_iterations": 20,
        "few_shot.per_class": [5, 10],
        "copies.images": 20,
        "copies.distractors": 20,
    },
    "params/benchmark.yaml": {
        "intervals.samples": 200,
        "pca.labelled": 1,
    },
}


@dataclass(frozen=True)
class Repro:
    """A finished ``dvc repro``: its code, what it printed, and its seconds."""

    code: int
    text: str
    seconds: float

    @property
    def ran(self) -> list[str]:
        """The stages whose command ran, in order, but ``inputs``, which always does."""
        return [name for name in re.findall(r"Running stage '([^']+)'", self.text) if name != "inputs"]

    @property
    def errors(self) -> list[str]:
        """The lines that say what went wrong."""
        return [line for line in self.text.splitlines() if line.startswith("error: ")]


@dataclass(frozen=True)
class Chain:
    """A workspace in which every stage has run once."""

    root: Path
    first: Repro


def stage_env(**more: str) -> dict[str, str]:
    """The environment of ``make``: this Python's tools first, no telemetry (tests/conftest.py), no server set."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW_TRACKING"))}
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
    env["PYTHONUNBUFFERED"] = "1"
    return env | more


def run(root: Path, *command: str, env: Mapping[str, str] | None = None, timeout: float = PATIENCE) -> Repro:
    """Run ``python -m ...`` in ``root``; stdout and stderr together."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=root,
        env=dict(env or stage_env()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
    return Repro(done.returncode, done.stdout, time.monotonic() - began)


def repro(root: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Repro:
    """``dvc repro`` in ``root``."""
    return run(root, "dvc", "repro", *arguments, env=env)


def edit(path: Path, changes: Mapping[str, Any]) -> None:
    """Set dotted keys of a YAML file; each must be there already, so that a renamed key is noticed here."""
    content = yaml.safe_load(path.read_text())
    for dotted, value in changes.items():
        *above, last = dotted.split(".")
        section = content
        for part in above:
            section = section[part]
        assert last in section, f"{path.name} has no {dotted}"
        section[last] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def fewer_labels(root: Path, file: Path) -> None:
    """Every fifth image of the demo's labelled set, in ``file``, in its place: the whole set takes a minute."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from components.evaluation.sets.benchmarks import ElpvParams, load_benchmark

    whole = load_benchmark("elpv", ElpvParams(kind="elpv"))
    rows = range(0, len(whole.keys), 5)
    columns: dict[str, list[Any]] = {
        task: [whole.class_names[task][labels[row]] for row in rows] for task, labels in whole.labels.items()
    }
    columns["split"] = ["test" if whole.test[row] else "train" for row in rows]
    columns["image"] = [whole.images.bytes(row) for row in rows]
    pq.write_table(pa.table(columns), file)
    few = {"elpv": {"kind": "parquet", "path": str(file), "labels": list(whole.labels)}}
    (root / "params/demo/benchmarks.yaml").write_text(yaml.safe_dump(few))


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


def copy_checkout(target: Path) -> None:
    """The checkout's files, as they are now, as a repository of their own."""
    for name in checkout_files(ROOT):
        if name != "dvc.lock":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    git(target, "init", "-q")
    git(target, "add", "-A")
    git(target, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", "copy")
