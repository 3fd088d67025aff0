"""Every command of docs/using.md runs, in the order of the page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.learning.export import weights_digest
from components.release.run import app, main
from components.release.serve import registered, server
from components.release.weights.load import load_model
from tests.components.release.small_models import official_names, saved, small_vit

PAGE = Path(__file__).resolve().parents[4] / "docs/using.md"
COMMAND = "python -m components.release "
ACTIONS = [name for name in app if not name.startswith("-")]


def commands() -> list[str]:
    """The commands in the page's console blocks; a backslash joins lines."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> None:
    monkeypatch.chdir(tmp_path)
    vit = small_vit(registers=4, interpolation="size")
    saved(official_names(dict(vit.state_dict())), tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    generator = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "photos" / ("cracked" if number % 2 else "whole")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    Image.fromarray(generator.integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(tmp_path / "one.jpg")
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    # Servers run until somebody ends them: here they are started and ended at once.
    monkeypatch.setattr(server, "_serve", lambda folder, *_: int(not (folder / "MLmodel").is_file()))
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda _: None)
    found = commands()
    assert {shlex.split(line)[3] for line in found} == set(ACTIONS)
    for line in found:
        assert line.startswith(COMMAND), line
        action, *given = shlex.split(line.removeprefix(COMMAND))
        if action == "promote":
            passes_the_gate(tmp_path)
        if action == "rollback":  # there must be a champion to go back to
            monkeypatch.setattr(registered, "build", lambda model, out, params: out.mkdir())
            assert main(["register", "--model", "data/models/vits14_reg4", "--name", "vits"]) == 0
            assert main(["promote", "--name", "vits"]) == 0
        assert main([action, *given]) == 0, line


def passes_the_gate(folder: Path) -> None:
    """Scores of the page's model, and a gate that asks for less."""
    weights = weights_digest(load_model(folder / "data/models/vits14_reg4").backbone)
    column = {"benchmark": "cells", "task": "type", "method": "knn20"}
    score = {
        "model": "m",
        "kind": "checkpoint",
        "accuracy": 90.0,
        "protocol": "quick v1 (0123)",
        "low": 0.0,
        "high": 100.0,
    } | column
    (folder / "data/benchmark").mkdir()
    content = {"scores": [score], "models": {"m": {"weights": weights}}}
    (folder / "data/benchmark/scores.json").write_text(json.dumps(content))
    (folder / "params").mkdir()
    (folder / "params/gate.yaml").write_text(json.dumps({"rows": [column | {"at_least": 50.0}]}))
