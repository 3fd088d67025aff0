"""The notebook of docs/ runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from patience import PATIENCE
from PIL import Image

from components.release.weights.export import save_model
from tests.components.release.small_models import small_model

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs/notebooks/first_steps.ipynb"


def test_the_notebook_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(small_model(registers=4, interpolation="size"), tmp_path / "data/models/vits14_reg4")
    generator = np.random.default_rng(0)
    for number in range(8):
        name = "bright" if number % 2 else "dark"
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        levels = generator.integers(0, 100, (60, 60, 3)) + 150 * (number % 2)
        Image.fromarray(levels.astype(np.uint8)).save(tmp_path / f"photos/{name}/{number}.png")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    text = "".join(out.get("text", "") for out in shown)
    assert "8 images of 2 classes" in text
    assert "accuracy by cross-validation: 100%" in text
    assert "1.000  photos/bright/1.png" in text
    assert any("image/png" in out.get("data", {}) for out in shown)
